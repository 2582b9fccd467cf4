"""Points and nuclei: against loops over shapely geometries, through every format and every way to say where points lie."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import shapely

from tests.command import call
from wsiseg.errors import FormatError
from wsiseg.questions import points as points_module
from wsiseg.questions.assign import AssignOptions, assign_points_to_nuclei
from wsiseg.questions.counting import Counts
from wsiseg.questions.nucleus_index import index_nuclei
from wsiseg.questions.points import open_points
from wsiseg.questions.transforms import apply_affine, fit_landmarks, read_matrix, read_spatialdata
from wsiseg.tables import open_nuclei

GENES = ("EPCAM", "CD3E", "NegControl_1")


def oracle(table: Path, xy: np.ndarray, reach_um: float = 0.0) -> tuple[list[int | None], list[float]]:
    """Return the id and the distance (um) of each point's nucleus, one point after the other."""
    frame = pq.read_table(table).to_pandas()
    mpp = json.loads(pq.read_schema(table).metadata[b"wsiseg"])["slide"]["mpp"]
    polygons = shapely.from_wkb(frame["geometry"].to_numpy())
    order = np.lexsort((frame["nucleus_id"], frame["area_px"]))
    ids, polygons = frame["nucleus_id"].to_numpy()[order], polygons[order]  # the first one that holds a point is the smallest
    names, distances = list[int | None](), list[float]()
    for point in shapely.points(xy):
        holds = np.flatnonzero(shapely.intersects(polygons, point))
        if len(holds):
            names.append(int(ids[holds[0]]))
            distances.append(0.0)
            continue
        far = shapely.distance(polygons, point)
        nearest = int(np.argmin(far)) if len(far) else -1
        found = nearest >= 0 and reach_um > 0 and far[nearest] * mpp <= reach_um
        names.append(int(ids[nearest]) if found else None)
        distances.append(float(far[nearest] * mpp) if found else np.nan)
    return names, distances


def some_points(table: Path, n: int, seed: int = 0) -> np.ndarray:
    """Return points all over the slide, and on vertices, edges and centroids of nuclei."""
    rng = np.random.default_rng(seed)
    polygons = shapely.from_wkb(pq.read_table(table)["geometry"].to_numpy(zero_copy_only=False))
    rings = [shapely.get_coordinates(p) for p in rng.choice(polygons, n // 4)]
    at = [rng.integers(0, len(r) - 1) for r in rings]
    vertices = np.array([r[k] for r, k in zip(rings, at, strict=True)])
    edges = np.array([r[k] + rng.random() * (r[k + 1] - r[k]) for r, k in zip(rings, at, strict=True)])
    inside = shapely.get_coordinates([p.representative_point() for p in rng.choice(polygons, n // 4)])
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    return np.concatenate([vertices, edges, inside, rng.uniform(low, high, (n - 3 * (n // 4), 2))])


@pytest.fixture(scope="module")
def slanted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported table: polygons with slanted edges that overlap and lie in each other."""
    root = tmp_path_factory.mktemp("slanted")
    rng = np.random.default_rng(6)
    features = []
    for _ in range(300):
        center, radius = rng.uniform(300, 1500, 2), rng.uniform(5, 60)
        angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
        ring = center + np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius
        features.append({"type": "Feature", "geometry": shapely.geometry.mapping(shapely.Polygon(ring)), "properties": {}})
    (root / "s.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    call("import", root / "s.geojson", "--from", "qupath", "--mpp", 0.5, "--width", 2000, "--height", 2000, "-o", root / "run")
    return root / "run/nuclei/s.parquet"


@pytest.mark.parametrize("reach_um", [0.0, 3.0, 40.0])
def test_points_are_assigned_as_by_a_loop(made: dict[str, Path], slanted: Path, reach_um: float) -> None:
    for table in (*made.values(), slanted):
        xy = some_points(table, 400)
        source = open_nuclei(table)
        nuclei = index_nuclei(source)
        row, distance = nuclei.find(xy, reach_um / source.mpp)
        names, far = oracle(table, xy, reach_um)
        assert distance * source.mpp == pytest.approx(np.array(far), abs=1e-9, nan_ok=True)
        found = [int(nuclei.nucleus_id[r]) if r >= 0 else None for r in row]
        at_border = np.array(far) > 0  # equally near nuclei may differ by a rounding of the loop's distances
        for k in np.flatnonzero([a != b for a, b in zip(found, names, strict=True)]):
            assert at_border[k]
            other = shapely.from_wkb(pq.read_table(table)["geometry"][int(row[k])].as_py())
            assert other.distance(shapely.Point(xy[k])) * source.mpp == pytest.approx(far[k], abs=1e-9)
        assert 100 < (distance == 0).sum() < 400


def test_points_too_near_to_a_slanted_edge_are_decided_by_geos(slanted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nuclei = index_nuclei(open_nuclei(slanted))
    decided: list[int] = []
    whole = type(nuclei)._decide
    monkeypatch.setattr(
        type(nuclei),
        "_decide",
        lambda self, xy, reach, row, far: decided.append(int((row == -2).sum())) or whole(self, xy, reach, row, far),
    )
    rng = np.random.default_rng(1)
    index = nuclei.index
    k = rng.choice(len(index.step) - 1, 400)
    owner = np.searchsorted(index.offset, k, side="right") - 1
    a, b = (index.base[owner] + index.step[np.minimum(k + j, index.offset[owner + 1] - 1)] for j in (0, 1))
    t = rng.random((len(k), 1))
    xy = a + t * (b - a)
    xy = np.concatenate([xy, np.nextafter(xy, np.inf), np.nextafter(xy, -np.inf)])
    row, _ = nuclei.find(xy, 0.0)
    assert sum(decided) > 20
    names, _ = oracle(slanted, xy)
    assert [int(nuclei.nucleus_id[r]) if r >= 0 else None for r in row] == names


def test_threads_and_order_do_not_matter(made: dict[str, Path]) -> None:
    nuclei = index_nuclei(open_nuclei(made["A"]))
    xy = np.concatenate([some_points(made["A"], 2000), [[np.nan, 5], [np.inf, 0], [-1e12, 1e12]]])
    row, distance = nuclei.find(xy, 50.0)
    assert (row[-3:] == -1).all()
    order = np.random.default_rng(3).permutation(len(xy))
    for threads in (2, 5):
        again, far = nuclei.find(xy[order], 50.0, threads)
        assert (again == row[order]).all()
        assert np.array_equal(far, distance[order], equal_nan=True)


def read_counts(path: Path) -> tuple[Any, list[str], list[str]]:
    with h5py.File(path) as file:
        x = file["X"]
        matrix = scipy.sparse.csr_matrix((x["data"][:], x["indices"][:], x["indptr"][:]), shape=tuple(x.attrs["shape"]))
        return matrix, file["obs/_index"].asstr()[:].tolist(), file["var/_index"].asstr()[:].tolist()


def expected_counts(table: Path, names: list[int | None], genes: np.ndarray) -> dict[tuple[str, str], int]:
    pairs = pd.Series([(str(n), g) for n, g in zip(names, genes, strict=True) if n is not None])
    return pairs.value_counts().to_dict()


def as_dict(matrix: Any, index: list[str], genes: list[str]) -> dict[tuple[str, str], int]:
    pairs = matrix.tocoo()
    return {(index[r], genes[c]): int(v) for r, c, v in zip(pairs.row, pairs.col, pairs.data, strict=True)}


@pytest.mark.parametrize("platform", ["xenium", "xenium-bytes", "cosmx", "merscope", "tabs"])
def test_transcripts_of_every_platform(run: Path, tmp_path: Path, platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = run / "nuclei/A.parquet"
    xy = some_points(table, 800, 5)
    rng = np.random.default_rng(8)
    genes = rng.choice(np.array(GENES, object), len(xy))
    quality = rng.uniform(5, 40, len(xy))
    scale = 0.25 if platform != "cosmx" else 1.0  # um, but for CosMx
    where, frame = tmp_path / "points", "um" if platform != "cosmx" else "slide"
    where.mkdir()
    extra: list[object] = []
    if platform.startswith("xenium"):
        names = pa.array([g.encode() for g in genes]) if platform.endswith("bytes") else pa.array(genes).dictionary_encode()
        columns = {"transcript_id": np.arange(len(xy)), "x_location": xy[:, 0] * scale, "y_location": xy[:, 1] * scale}
        file = where / "transcripts.parquet"
        pq.write_table(pa.table({**columns, "feature_name": names, "qv": quality}), file, row_group_size=100)
    elif platform == "cosmx":
        file = where / "Slide1_tx_file.csv.gz"
        frame_ = pd.DataFrame({"fov": 1, "x_global_px": xy[:, 0], "y_global_px": xy[:, 1], "target": genes})
        file.write_bytes(gzip.compress(frame_.to_csv(index=False).encode()))
    elif platform == "merscope":
        file = where / "detected_transcripts.csv"
        pd.DataFrame({"global_x": xy[:, 0] * scale, "global_y": xy[:, 1] * scale, "gene": genes}).to_csv(file)
    else:
        file = where / "t.tsv"
        pd.DataFrame({"X um": xy[:, 0] * scale, "Y um": xy[:, 1] * scale, "what": genes}).to_csv(file, sep="\t", index=False)
        extra = ["--x", "X um", "--y", "Y um", "--gene", "what"]
    monkeypatch.setattr(points_module, "BATCH_ROWS", 128)
    target = file if platform == "tabs" else where
    reported = call(
        "assign", run, target, "--slide", "A", "--frame", frame, "--within-um", 5, *extra, "-o", tmp_path / "o.parquet",
        "--counts", tmp_path / "c.h5ad",
    )  # fmt: skip
    names_, far = oracle(table, xy, 5.0)
    got = pq.read_table(tmp_path / "o.parquet")
    ties = np.array([a != b for a, b in zip(got["nucleus_id"].to_pylist(), names_, strict=True)])
    assert ties.mean() < 0.01
    assert not (ties & (np.array(far) == 0)).any()
    assert got["distance_um"].to_numpy() == pytest.approx(np.array(far), abs=1e-3, nan_ok=True)
    matrix, index, found = read_counts(tmp_path / "c.h5ad")
    assert index == pq.read_table(table)["nucleus_id"].cast(pa.string()).to_pylist()
    assert sorted(found) == sorted(GENES)
    assert as_dict(matrix, index, found) == expected_counts(table, got["nucleus_id"].to_pylist(), genes)
    assert f"{len(xy):,} points" in reported
    if platform == "xenium":
        assert got["transcript_id"].to_pylist() == list(range(len(xy)))
        call("assign", run, target, "--slide", "A", "--frame", "um", "--min-quality", 20, "-o", tmp_path / "p.parquet",
             "--counts", tmp_path / "d.h5ad")  # fmt: skip
        good = [n if q >= 20 else None for n, q in zip(oracle(table, xy)[0], quality, strict=True)]
        assert as_dict(*read_counts(tmp_path / "d.h5ad")) == expected_counts(table, good, genes)


def test_every_map_gives_the_same_nuclei(made: dict[str, Path], tmp_path: Path) -> None:
    table = made["A"]
    xy = np.concatenate([some_points(table, 400)[200:300], np.random.default_rng(2).uniform(1500, 9000, (300, 2))])
    turn = np.deg2rad(17)
    to_points = np.array([[np.cos(turn), -np.sin(turn), -800], [np.sin(turn), np.cos(turn), 300], [0, 0, 1 / 0.7]]) * 0.7
    to_slide = np.linalg.inv(to_points)
    um = apply_affine(to_points, xy) * 0.2125
    pd.DataFrame({"x": um[:, 0], "y": um[:, 1]}).to_csv(tmp_path / "p.csv", index=False)
    expected = index_nuclei(open_nuclei(table)).find(apply_affine(to_slide, um / 0.2125), 0.0)[0]
    np.savetxt(tmp_path / "inverse.csv", to_points, delimiter=",")
    np.savetxt(tmp_path / "matrix.txt", to_slide[:2])
    (tmp_path / "matrix.json").write_text(json.dumps(to_slide.tolist()))
    marks = np.random.default_rng(5).uniform(1000, 9000, (6, 2))
    there = apply_affine(to_points, marks)
    header = "# Xenium Explorer\n"
    keys = pd.DataFrame({"fixedX": there[:, 0], "fixedY": there[:, 1], "alignmentX": marks[:, 0], "alignmentY": marks[:, 1]})
    (tmp_path / "keypoints.csv").write_text(header + keys.to_csv(index=False))
    plain = pd.DataFrame({"x": there[:, 0] * 0.2125, "y": there[:, 1] * 0.2125, "slide_x": marks[:, 0], "slide_y": marks[:, 1]})
    plain.to_csv(tmp_path / "plain.csv", index=False)
    plain.to_csv(tmp_path / "bare.csv", index=False, header=False)
    axes = [{"name": n} for n in ("x", "y", "z")]
    affine = [[*to_slide[0, :2], 0, to_slide[0, 2]], [*to_slide[1, :2], 0, to_slide[1, 2]], [0, 0, 1, 0]]
    shrink = {"type": "scale", "scale": [0.5, 0.5, 1], "input": {"axes": axes}, "output": {"axes": axes}}
    grow = {"type": "affine", "affine": affine, "input": {"axes": axes}, "output": {"axes": axes, "name": "global"}}
    points = {"type": "sequence", "transformations": [grow, shrink], "input": {"axes": axes}, "output": {"name": "global"}}
    element = tmp_path / "store.zarr/points/transcripts"
    element.mkdir(parents=True)
    (element / "zarr.json").write_text(json.dumps({"attributes": {"coordinateTransformations": [points]}}))
    picture_axes = [{"name": n} for n in ("c", "y", "x")]
    half = {"type": "scale", "scale": [1, 0.5, 0.5], "input": {"axes": picture_axes}, "output": {"name": "global"}}
    picture = tmp_path / "store.zarr/images/he"
    picture.mkdir(parents=True)
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]}
    scales = {"axes": picture_axes, "coordinateTransformations": [half], "datasets": [level]}
    (picture / ".zattrs").write_text(json.dumps({"multiscales": [scales]}))
    ways: list[list[object]] = [
        ["--affine", tmp_path / "inverse.csv", "--inverse"],
        ["--affine", tmp_path / "matrix.txt"],
        ["--affine", tmp_path / "matrix.json"],
        ["--landmarks", tmp_path / "keypoints.csv"],
        ["--landmarks", tmp_path / "plain.csv"],
        ["--landmarks", tmp_path / "bare.csv"],
        ["--transformation", element, "--image-transformation", picture],
    ]
    for k, way in enumerate(ways):
        reported = call("assign", table, tmp_path / "p.csv", *way, "--divide", 0.2125, "-o", tmp_path / f"{k}.parquet")
        got = pq.read_table(tmp_path / f"{k}.parquet")["nucleus_id"].to_pylist()
        ids = index_nuclei(open_nuclei(table)).nucleus_id
        same = [g == (int(ids[r]) if r >= 0 else None) for g, r in zip(got, expected, strict=True)]
        assert np.mean(same) > 0.99, way  # a point on a border may fall to its other side by a rounding
        assert "turned by -17.00 degrees" in reported
        assert ("residual 0.00 px" in reported) == (way[0] == "--landmarks")


def test_landmarks_are_fitted_by_least_squares(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = rng.uniform(0, 1e5, (9, 2))
    target = source @ np.array([[0.9, 0.1], [-0.2, 1.1]]) + (50, -70) + rng.normal(0, 3, (9, 2))
    np.savetxt(tmp_path / "l.csv", np.column_stack([source, target]), delimiter=",")
    matrix, rms, worst, n = fit_landmarks(tmp_path / "l.csv")
    solved, *_ = np.linalg.lstsq(np.column_stack([source, np.ones(9)]), target, rcond=None)
    assert matrix[:2] == pytest.approx(solved.T, rel=1e-6, abs=1e-6)
    off = np.linalg.norm(np.column_stack([source, np.ones(9)]) @ solved - target, axis=1)
    assert (rms, worst, n) == (pytest.approx(np.sqrt((off**2).mean())), pytest.approx(off.max()), 9)


def test_bins_of_visium_hd_bring_their_counts(run: Path, tmp_path: Path) -> None:
    table = run / "nuclei/A.parquet"
    folder = tmp_path / "square_002um/spatial"
    folder.mkdir(parents=True)
    side = 8.0  # 2 um at 0.25 um/px
    row, column = (a.ravel() for a in np.mgrid[0:30, 0:35])
    xy = np.stack([2000 + (column + 0.5) * side, 2500 + (row + 0.5) * side], axis=1)
    barcodes = np.array([f"s_002um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)], object)
    positions = {"barcode": barcodes, "in_tissue": 1, "array_row": row, "array_col": column}
    frame = pd.DataFrame({**positions, "pxl_row_in_fullres": xy[:, 1], "pxl_col_in_fullres": xy[:, 0]})
    frame.to_parquet(folder / "tissue_positions.parquet")
    (folder / "scalefactors_json.json").write_text(json.dumps({"microns_per_pixel": 0.25, "bin_size_um": 2.0}))
    rng = np.random.default_rng(3)
    order = rng.permutation(len(barcodes))[:800]
    values = scipy.sparse.random(4, len(order), 0.4, "csc", random_state=rng, data_rvs=lambda n: rng.integers(1, 9, n)).astype(
        int
    )
    with h5py.File(tmp_path / "m.h5", "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = [*(b.encode() for b in barcodes[order][:-1]), b"unknown-1"]
        group["shape"] = np.array(values.shape, np.int32)
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(values, name)
        group["features/name"] = [b"EPCAM", b"CD3E", b"TBCE", b"TBCE"]
        group["features/id"] = [b"E1", b"E2", b"E3", b"E4"]
    reported = call(
        "assign", run, tmp_path / "square_002um", "--slide", "A", "--matrix", tmp_path / "m.h5", "-o", tmp_path / "o.parquet",
        "--counts", tmp_path / "c.h5ad",
    )  # fmt: skip
    assert "1 of 800 barcodes have no position" in reported
    got = pq.read_table(tmp_path / "o.parquet")
    assert got["nucleus_id"].to_pylist() == oracle(table, xy)[0]
    assert got["barcode"].to_pylist() == barcodes.tolist()
    owner = got["nucleus_id"].to_pylist()
    expected: dict[tuple[str, str], int] = {}
    for k, b in enumerate(order[:-1]):
        if owner[b] is not None:
            for g, v in zip(("EPCAM", "CD3E", "TBCE_E3", "TBCE_E4"), values[:, k].toarray()[:, 0], strict=True):
                if v:
                    expected[str(owner[b]), g] = expected.get((str(owner[b]), g), 0) + int(v)
    assert as_dict(*read_counts(tmp_path / "c.h5ad")) == expected
    # another picture than the slide
    (folder / "scalefactors_json.json").write_text(json.dumps({"microns_per_pixel": 0.5}))
    reported = call("assign", run, tmp_path / "square_002um", "--slide", "A", "-o", tmp_path / "p.parquet")
    assert "it states 0.5 um/px, the slide has 0.25" in reported
    (folder / "scalefactors_json.json").write_text("{}")
    assert "microns_per_pixel" in call(
        "assign", run, tmp_path / "square_002um", "--slide", "A", "-o", tmp_path / "q.parquet", code=2
    )


def test_counts_are_sums_whatever_the_batches() -> None:
    rng = np.random.default_rng(1)
    rows, genes = rng.integers(-1, 40, 5000).astype(np.int32), rng.choice(np.array(["a", "b", "c"], object), 5000)
    expected = pd.Series([(int(r), g) for r, g in zip(rows, genes, strict=True) if r >= 0]).value_counts().to_dict()
    for parts in (1, 7, 5000):
        counts = Counts()
        for at in np.array_split(np.arange(5000), parts):
            counts.add(rows[at], pa.chunked_array([pa.array(genes[at])]))
        names = list(counts.genes)
        found = {(int(r), names[g]): int(n) for r, g, n in zip(*counts.pairs(), strict=True)}
        assert found == expected


def test_points_that_do_not_fit_are_refused_with_numbers(run: Path, tmp_path: Path) -> None:
    base = ["--slide", "A", "--overwrite", "-o", tmp_path / "o.parquet"]
    inside = np.random.default_rng(0).uniform(3500, 9000, (500, 2))

    def written(xy: np.ndarray, **more: Any) -> Path:
        pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1], **more}).to_csv(tmp_path / "p.csv", index=False)
        return tmp_path / "p.csv"

    reported = call("assign", run, written(inside), *base, code=2)
    assert "their position on the slide is not known" in reported
    reported = call("assign", run, written(inside), *base, "--frame", "um", code=2)  # 4 times too far
    assert "outside" in reported
    assert "--frame slide" in reported
    reported = call("assign", run, written(np.concatenate([inside, inside + 20_000])), *base, "--frame", "slide")
    assert "50.0% of 1,000" in reported
    np.savetxt(tmp_path / "m.txt", np.array([[40, 0, 0], [0, 40, 0], [0, 0, 1]]))
    reported = call("assign", run, written(inside), *base, "--affine", tmp_path / "m.txt", code=2)
    assert "--inverse" in reported
    assert "per unit 40" in reported
    reported = call("assign", run, written(inside * np.nan), *base, "--frame", "slide", code=2)
    assert "no point has x and y" in reported
    assert "no point" in call("assign", run, written(inside[:0]), *base, "--frame", "slide", code=2)
    reported = call("assign", run, written(np.where(np.arange(500)[:, None] < 5, np.nan, inside)), *base, "--frame", "slide")
    assert "5 of 500 points have no x or y" in reported
    reported = call("assign", run, written(inside), *base, "--frame", "slide", "--x", "lon", code=2)
    assert "lon are missing" in reported
    assert "x, y" in reported
    (tmp_path / "p.csv").write_text("x,y\n1,2\na,b\n")
    assert "cannot be read" in call("assign", run, tmp_path / "p.csv", *base, "--frame", "slide", code=2)
    assert "expected one of the files" in call("assign", run, tmp_path / "run", *base, code=2)
    assert "got 2 (A, B" in call("assign", run, written(inside), "-o", tmp_path / "o.parquet", "--overwrite", code=2)
    assert "already exists" in call("assign", run, written(inside), "--slide", "A", "-o", tmp_path / "o.parquet", code=2)
    corner = np.random.default_rng(0).uniform(0, 900, (500, 2))
    assert "none of 500 points" in call("assign", run, written(corner), *base, "--frame", "slide")
    pq.write_table(pq.read_table(run / "nuclei/A.parquet").slice(0, 0), run / "nuclei/A.parquet")
    reported = call("assign", run, written(inside), *base, "--frame", "slide", "--counts", tmp_path / "c.h5ad")
    assert "the slide has no nuclei" in reported
    assert read_counts(tmp_path / "c.h5ad")[0].shape == (0, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 2 3\n4 5", "matrix"),
        ("1 0 0\n2 0 0\n0 0 1", "no inverse"),
        ("1 0 0\n0 1 0\n0 0.5 1", "last row"),
        ("nan 0 0\n0 1 0", "finite"),
        ("a b c\n1 2 3", "matrix"),
        ("[[1, 0], [0, 1]]", "shape"),
    ],
)
def test_matrices_that_are_none_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "m.txt").write_text(text)
    with pytest.raises(FormatError, match=words):
        read_matrix(tmp_path / "m.txt")


def test_other_maps_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("x,y,slide_x,slide_y\n0,0,1,1\n1,1,2,2\n2,2,3,3\n")
    with pytest.raises(FormatError, match="not on one line"):
        fit_landmarks(tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text("x,y\n0,0\n")
    with pytest.raises(FormatError, match="slide_x"):
        fit_landmarks(tmp_path / "l.csv")
    for content, words in (
        ({"coordinateTransformations": []}, "no transformation to the coordinate system 'global'; it has none"),
        ({"coordinateTransformations": [{"type": "bspline", "output": {"name": "global"}}]}, "bspline"),
        (
            {"coordinateTransformations": [{"type": "scale", "output": {"name": "global"}}]},
            "does not follow the SpatialData format",
        ),
    ):
        (tmp_path / "t.json").write_text(json.dumps(content))
        with pytest.raises(FormatError, match=words):
            read_spatialdata(tmp_path / "t.json")
    with pytest.raises(FormatError, match="expected an element"):
        read_spatialdata(tmp_path)


def test_memory_of_batches_is_bounded_by_their_size(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than one batch of points is asked for at a time, whatever the file holds."""
    monkeypatch.setattr(points_module, "BATCH_ROWS", 50)
    xy = np.random.default_rng(0).uniform(1500, 9000, (1000, 2))
    pq.write_table(pa.table({"x": xy[:, 0], "y": xy[:, 1]}), tmp_path / "p.parquet")
    largest: list[int] = []
    find = type(index_nuclei(open_nuclei(made["A"]))).find
    monkeypatch.setattr(
        "wsiseg.questions.nucleus_index.NucleusIndex.find", lambda self, p, *a: largest.append(len(p)) or find(self, p, *a)
    )
    source = open_points(tmp_path / "p.parquet", "table")
    done = assign_points_to_nuclei(made["A"], source, tmp_path / "o.parquet", AssignOptions(frame="slide"))
    assert (max(largest), sum(largest), done.n_points) == (50, 1000, 1000)
