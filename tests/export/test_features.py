"""Features of nuclei: against scikit-image, brute force and plain deconvolution; the same however the slide is cut."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from scipy.spatial import ConvexHull
from skimage import color, measure

from tests.run.conftest import SLIDE
from wsiseg import read_nuclei
from wsiseg.cli.commands_convert import COMMANDS
from wsiseg.config import RunConfig, ScheduleConfig, WriteConfig
from wsiseg.errors import FormatError, InputError
from wsiseg.export import query, write_csv, write_geojson
from wsiseg.read import open_slide, read_working
from wsiseg.results.folder import RunFolder
from wsiseg.results.slide_record import SlideRecord, write_slide
from wsiseg.rows import SlideRow
from wsiseg.run import features as features_module
from wsiseg.run.features import FeatureOptions, measure_features, measure_run
from wsiseg.schema import DERIVED, FEATURES
from wsiseg.summarize import RUIFROK_JOHNSTON, neighbors
from wsiseg.tables import Selection, open_nuclei, with_features
from wsiseg.types import Box, Instances, Tile, TileStats
from wsiseg.vectorize import vectorize
from wsiseg.write import write_nuclei_table, write_part

WINDOW = Box(880, 1530, 1300, 900)
"""Working px: crosses the borders of windows of 1000, 333 and 128."""


def blobs(seed: int, n: int) -> np.ndarray:
    """Return int32 labels of whole, hole-free wobbly discs, some of them touching."""
    rng = np.random.default_rng(seed)
    out = np.zeros((WINDOW.h, WINDOW.w), np.int32)
    y, x = np.mgrid[: WINDOW.h, : WINDOW.w]
    for k in range(1, n + 1):
        cy, cx, r = rng.uniform(25, WINDOW.h - 25), rng.uniform(25, WINDOW.w - 25), rng.uniform(6, 16)
        ys, xs = slice(int(cy) - 24, int(cy) + 25), slice(int(cx) - 24, int(cx) + 25)
        theta = np.arctan2(y[ys, xs] - cy, x[ys, xs] - cx)
        wall = r * (1 + 0.25 * np.cos(2 * theta + rng.uniform(0, 6)) + 0.08 * np.cos(3 * theta + rng.uniform(0, 6)))
        out[ys, xs][np.hypot(y[ys, xs] - cy, x[ys, xs] - cx) < wall] = k
    pieces = measure.label(out, connectivity=1)
    good = [r.label for r in measure.regionprops(pieces) if r.area == r.area_filled and r.area > 60]
    kept = np.where(np.isin(pieces, good), pieces, 0)
    return measure.label(kept, background=0, connectivity=1).astype(np.int32)


def make_run(root: Path, labels: np.ndarray, scale: float, path: Path = SLIDE) -> Path:
    """Write a run folder whose one slide has these nuclei, found at ``WINDOW`` in working px."""
    for folder in ("nuclei", "slides"):
        (root / folder).mkdir(parents=True)
    slide = open_slide(str(SLIDE))
    meta, slide_id = slide.meta, SLIDE.stem
    slide.close()
    regions = measure.regionprops(labels)
    anchors = np.array([r.coords[len(r.coords) // 2][::-1] for r in regions], np.int32).reshape(-1, 2)
    batch = vectorize(Instances(labels, anchors), np.zeros((2, *labels.shape), np.uint8), WINDOW, WINDOW)
    part = root / "part.parquet"
    write_part(part, batch, Tile(slide_id, 0, WINDOW, WINDOW, scale, 1.0), TileStats(), {}, "d" * 16)
    write_nuclei_table([part], root / f"nuclei/{slide_id}.parquet", meta, scale, {}, WriteConfig(row_group_rows=64))
    row = SlideRow.blank(slide_id, "done", path=str(path), mpp=meta.mpp, cohort="CMU")
    write_slide(RunFolder(root), SlideRecord("d" * 16, row))
    return root


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return blobs(3, 220)


@pytest.fixture(scope="module", params=[1.0, 2.0], ids=["native", "resampled"])
def scaled_run(
    request: pytest.FixtureRequest, labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, float]:
    run = make_run(tmp_path_factory.mktemp("features") / "run", labels, request.param)
    assert list(measure_run(run, FeatureOptions(tile_wpx=333))) == [(SLIDE.stem, labels.max())]
    return run, request.param


def in_label_order(run: Path, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return all columns of the run's nuclei, sorted as the labels are: by the working px of their marker."""
    table = read_nuclei(run, slide_id=SLIDE.stem, features=True)
    ids = table["nucleus_id"].to_numpy()
    at = labels[ids // 2**31 - WINDOW.y, ids % 2**31 - WINDOW.x]
    assert sorted(at.tolist()) == list(range(1, labels.max() + 1))
    order = np.argsort(at)
    return {n: table[n].to_numpy(zero_copy_only=False)[order] for n in table.column_names if n not in ("geometry", "bbox")}


def test_features_are_those_of_scikit_image(scaled_run: tuple[Path, float], labels: np.ndarray) -> None:
    run, scale = scaled_run
    got = in_label_order(run, labels)
    slide = open_slide(str(SLIDE))
    rgb = read_working(slide, WINDOW, scale)
    um = slide.meta.mpp / scale
    slide.close()
    vectors = np.array(RUIFROK_JOHNSTON)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    third = np.cross(*vectors)
    unmix = np.linalg.inv(np.array([*vectors, third / np.linalg.norm(third)]))
    od = -np.log10((rgb.astype(np.float64) + 1) / 256)
    regions = measure.regionprops(labels, intensity_image=od @ unmix[:, :2], spacing=(um, um))

    def of(name: str) -> np.ndarray:
        return np.array([getattr(r, name) for r in regions])

    assert got["area_um2"] == pytest.approx(of("area"), rel=1e-6)
    assert got["axis_major_length_um"] == pytest.approx(of("axis_major_length"), abs=1 / 64 + 1e-6)
    assert got["axis_minor_length_um"] == pytest.approx(of("axis_minor_length"), abs=1 / 64 + 1e-6)
    assert got["equivalent_diameter_area_um"] == pytest.approx(of("equivalent_diameter_area"), rel=1e-6)
    long = of("eccentricity") > 0.4  # of a near circle both eccentricity and orientation hang on the last digits
    assert long.sum() > 100
    assert got["eccentricity"][long] == pytest.approx(of("eccentricity")[long], abs=0.02)
    turned = np.abs(got["orientation"] - of("orientation"))[long]
    assert np.minimum(turned, math.pi - turned).max() <= 1 / 512 + 1e-5
    assert np.abs(got["orientation"]).max() <= math.pi / 2 + 1e-6
    perimeter = np.array([measure.perimeter_crofton(np.pad(r.image, 1), directions=4) for r in regions]) * um
    assert got["perimeter_um"] == pytest.approx(perimeter, rel=0.01)
    assert got["circularity"] == pytest.approx(4 * np.pi * got["area_um2"] / got["perimeter_um"] ** 2, rel=1e-5)
    assert got["solidity"] == pytest.approx(of("solidity"), abs=0.06)
    large = np.bincount(labels.ravel())[1:] >= 200
    assert got["solidity"][large] == pytest.approx(of("solidity")[large], abs=0.04)
    # a share is rounded to 1/4096 thrice, and the mean to 1/4096 again
    assert np.stack([got["hematoxylin_od_mean"], got["eosin_od_mean"]], 1) == pytest.approx(of("intensity_mean"), abs=3 / 4096)
    assert np.stack([got["hematoxylin_od_std"], got["eosin_od_std"]], 1) == pytest.approx(of("intensity_std"), abs=3 / 4096)


def test_solidity_is_that_of_the_outline(scaled_run: tuple[Path, float]) -> None:
    run, _ = scaled_run
    frame = read_nuclei(run, slide_id=SLIDE.stem, columns=["solidity"], as_geopandas=True)
    hulls = [ConvexHull(np.asarray(g.exterior.coords)).volume for g in frame.geometry]  # SciPy's volume is the area in 2-D
    assert frame["solidity"].to_numpy() == pytest.approx(frame.geometry.area.to_numpy() / hulls, abs=1 / 2048 + 1e-6)


def test_optical_density_is_scikit_images_deconvolution() -> None:
    from wsiseg.summarize import od_features, od_tables, sum_od

    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    labels = np.arange(1, 2001, dtype=np.int32).reshape(40, 50)  # every pixel a nucleus
    sums = np.zeros((2000, 5), np.int64)
    sum_od(sums, np.arange(2000), labels, rgb, od_tables(color.rgb_from_hed[:2]))
    vectors = np.array(color.rgb_from_hed[:2]) / np.linalg.norm(color.rgb_from_hed[:2], axis=1, keepdims=True)
    unmix = np.linalg.inv(np.array([*vectors, np.cross(*vectors)]))
    # scikit-image's densities are logarithms to the base of 1e-6 (6 decades) and never negative
    theirs = 6 * color.separate_stains((rgb.astype(np.float64) + 1) / 256, unmix).reshape(-1, 3)[:, :2]
    ours = od_features(sums)
    means = np.stack([ours["hematoxylin_od_mean"], ours["eosin_od_mean"]], 1)
    assert np.maximum(means, 0) == pytest.approx(theirs, abs=2 / 4096)
    assert not ours["eosin_od_std"].any()


def test_rings_that_overlap_are_summed_as_they_are_drawn() -> None:
    """Rectangles in any order, some beyond the window: the first in order has a pixel, as the last that NumPy paints."""
    from wsiseg.summarize import od_tables, sum_ring_od

    rng = np.random.default_rng(7)
    window, at = Box(105, 203, 60, 50), Box(100, 200, 80, 70)
    rgb = rng.integers(0, 256, (at.h, at.w, 3)).astype(np.uint8)
    shares = od_tables(RUIFROK_JOHNSTON)
    corner, size = rng.integers((90, 190), (170, 260), (50, 2)), rng.integers(1, 25, (50, 2))
    xy = np.array(
        [[[x, y], [x, y + h], [x + w, y + h], [x + w, y], [x, y]] for (x, y), (w, h) in zip(corner, size, strict=True)]
    )
    order = rng.permutation(50)
    canvas = np.zeros((400, 400), np.int64)
    for k in order[::-1]:
        (x, y), (w, h) = corner[k], size[k]
        canvas[y : y + h, x : x + w] = k + 1
    painted = canvas[window.y : window.y1, window.x : window.x1]
    inside = rgb[window.y - at.y : window.y1 - at.y, window.x - at.x : window.x1 - at.x]
    densities = [stain[0][inside[..., 0]] + stain[1][inside[..., 1]] + stain[2][inside[..., 2]] for stain in shares]
    expected = [
        [
            (mask := painted == k + 1).sum(),
            *(v for d in densities for v in (d[mask].sum(), (d[mask].astype(np.int64) ** 2).sum())),
        ]
        for k in range(50)
    ]
    sums = np.zeros((50, 5), np.int64)
    rings = (xy.reshape(-1, 2).astype(np.int32), np.arange(0, 251, 5))
    sum_ring_od(sums, np.arange(50), rings, order, (rgb, at), window, shares)
    assert len(np.unique(painted)) > 25
    np.testing.assert_array_equal(sums, expected)


def test_neighbors_are_those_of_brute_force() -> None:
    scattered = np.random.default_rng(1).uniform(0, 400, (300, 2))
    xy = np.concatenate([scattered, np.arange(12).reshape(-1, 2) * 50.0, [[9e3, 9e3]]])  # at the radius exactly; far off
    distance = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
    np.fill_diagonal(distance, np.inf)
    got = neighbors(xy, 50.0)
    assert got["nearest_um"] == pytest.approx(distance.min(axis=1), abs=1 / 64 + 1e-6)
    assert got["local_density_per_mm2"] == pytest.approx((distance <= 50).sum(axis=1) / (np.pi * 0.05**2), rel=1e-6)
    assert np.isnan(neighbors(xy[:1])["nearest_um"]).all()
    assert neighbors(np.empty((0, 2)))["nearest_um"].shape == (0,)


@pytest.mark.parametrize("tile_wpx", [128, 1000, 4000])
def test_results_do_not_depend_on_the_windows(scaled_run: tuple[Path, float], labels: np.ndarray, tile_wpx: int) -> None:
    run, _ = scaled_run
    path = run / f"features/{SLIDE.stem}.parquet"
    before = path.read_bytes()
    assert measure_features(run, SLIDE.stem, FeatureOptions(tile_wpx=tile_wpx)) == labels.max()
    assert path.read_bytes() == before


def test_workers_give_the_same_bytes_and_tell_how_far_they_are(
    labels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", labels, 1.0)
    measure_features(run, SLIDE.stem)
    alone = (run / f"features/{SLIDE.stem}.parquet").read_bytes()
    monkeypatch.setattr(features_module, "FEW_NUCLEI", 0)
    monkeypatch.setattr(features_module, "PIECE_PX", 1)
    monkeypatch.setattr(features_module, "PIECE_GROUPS", 1)
    notes: list[tuple[int, int]] = []
    config = RunConfig(schedule=ScheduleConfig(workers=2))
    options = FeatureOptions(tile_wpx=300, overwrite=True)
    done = measure_run(run, options, config=config, on_progress=lambda p: notes.append((p.pieces_done, p.slides_done)))
    assert list(done) == [(SLIDE.stem, labels.max())]
    assert (run / f"features/{SLIDE.stem}.parquet").read_bytes() == alone
    assert notes[0] == (0, 0)
    assert notes[-1][0] > 5
    assert notes[-1][1] == 1


def test_slanted_and_overlapping_polygons_do_not_depend_on_the_windows(tmp_path: Path) -> None:
    from wsiseg.export.imports import ImportOptions, import_files

    rng = np.random.default_rng(5)
    features = []
    for _ in range(60):  # tenths of pixels, as QuIP has them: sides pass through pixel centers
        x, y = rng.uniform(100, 1900, 2).round(1).tolist()
        dx, dy = (rng.integers(5, 90, (3, 2)) / 10 * rng.choice([10, 1])).T.tolist()
        ring = [[x, y], [x + dx[0], y - dy[0]], [x + dx[0] + dx[1], y + dy[1]], [x + dx[2], y + dy[1] + dy[2]], [x, y]]
        features.append({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}})
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    run = tmp_path / "run"
    import_files([path], "qupath", run, ImportOptions(slide=str(SLIDE), frame="slide"))
    seen = set()
    for tile_wpx in (256, 1000, 4000):
        measure_features(run, SLIDE.stem, FeatureOptions(tile_wpx=tile_wpx))
        seen.add((run / f"features/{SLIDE.stem}.parquet").read_bytes())
    assert len(seen) == 1


def test_every_column_is_as_the_schema_states(scaled_run: tuple[Path, float]) -> None:
    run, _ = scaled_run
    path = run / f"features/{SLIDE.stem}.parquet"
    schema = pq.read_schema(path)
    assert schema.names == [c.name for c in FEATURES]
    assert {schema.field(c.name).metadata[b"unit"].decode() for c in FEATURES} == {c.unit for c in FEATURES}
    facts = json.loads(schema.metadata[b"wsiseg"])
    assert facts["stain_vectors_rgb"] == [list(v) for v in RUIFROK_JOHNSTON]
    table = run / f"nuclei/{SLIDE.stem}.parquet"
    a, b = pq.read_metadata(path), pq.read_metadata(table)
    assert [a.row_group(k).num_rows for k in range(a.num_row_groups)] == [
        b.row_group(k).num_rows for k in range(b.num_row_groups)
    ]
    assert (pq.read_table(path)["nucleus_id"].to_numpy() == pq.read_table(table)["nucleus_id"].to_numpy()).all()


def test_reading_sql_and_exports_join_them(scaled_run: tuple[Path, float], tmp_path: Path) -> None:
    run, _ = scaled_run
    table = run / f"nuclei/{SLIDE.stem}.parquet"
    whole = read_nuclei(table, features=True)
    names = [c.name for c in (*DERIVED, *FEATURES) if c.name != "nucleus_id"]
    assert whole.column_names[-len(names) :] == names
    cx, cy = (whole[c].to_numpy() for c in ("cx", "cy"))
    box = Box(int(np.median(cx)) - 100, int(np.median(cy)) - 100, 200, 200)
    part = read_nuclei(table, box, columns=["eosin_od_mean", "circularity"])
    assert part.column_names == ["eosin_od_mean", "circularity"]
    assert 0 < part.num_rows < whole.num_rows
    keyed = dict(zip(whole["nucleus_id"].to_pylist(), whole["eosin_od_mean"].to_pylist(), strict=True))
    assert part["eosin_od_mean"].to_pylist() == [
        keyed[k] for k in read_nuclei(table, box, ["nucleus_id"])["nucleus_id"].to_pylist()
    ]
    answer, units = query(run, f"select nucleus_id, {', '.join(names)} from features order by nucleus_id")
    sorted_ = whole.sort_by("nucleus_id")
    for name in names:
        assert answer[name].to_numpy() == pytest.approx(sorted_[name].to_numpy(), rel=1e-6)
    assert units["nearest_um"] == "um"
    assert units["hematoxylin_od_mean"] == "OD"
    source = with_features(open_nuclei(table))
    write_csv(source, tmp_path / "a.csv", Selection(box))
    rows = np.genfromtxt(tmp_path / "a.csv", delimiter=",", names=True, usecols=range(20), encoding="utf-8", deletechars="")
    assert set(rows["eccentricity"].round(5).tolist()) <= set(
        np.round(whole["eccentricity"].to_numpy().astype(float), 5).tolist()
    )
    write_geojson(source, tmp_path / "a.geojson")
    first = json.loads((tmp_path / "a.geojson").read_text())["features"][0]["properties"]["measurements"]
    assert first["Hematoxylin OD mean"] == pytest.approx(whole["hematoxylin_od_mean"][0].as_py(), rel=1e-6)
    assert "Nearest nucleus µm" in first


def test_without_pixels_and_without_features(labels: np.ndarray, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", labels, 1.0, path=tmp_path / "gone" / SLIDE.name)
    table = run / f"nuclei/{SLIDE.stem}.parquet"
    assert "eccentricity" in read_nuclei(run, features=True).column_names  # needs no file
    assert "solidity" not in query(run, "select * from features")[0].column_names
    with pytest.raises(FormatError, match="wsiseg features"):
        read_nuclei(table, columns=["solidity"])
    with pytest.raises(InputError, match="--no-pixels"):
        measure_features(run, SLIDE.stem)
    ((_, why),) = measure_run(run)  # of a whole run one slide that is gone is a line, not a stop
    assert "--path-map" in str(why)
    assert list(measure_run(run, FeatureOptions(pixels=False))) == [(SLIDE.stem, labels.max())]
    got = read_nuclei(table, columns=["solidity", "eosin_od_std"])
    assert got["eosin_od_std"].null_count == labels.max()
    assert got["solidity"].null_count == 0
    assert list(measure_run(run, FeatureOptions(pixels=False))) == []  # done already
    mapped = FeatureOptions(path_map=(f"{tmp_path / 'gone'}={SLIDE.parent}",), stain="macenko")
    assert list(measure_run(run, mapped)) == [(SLIDE.stem, labels.max())]
    assert read_nuclei(table, columns=["eosin_od_std"])["eosin_od_std"].null_count == 0
    other = make_run(tmp_path / "other", blobs(4, 30), 1.0)
    table.write_bytes((other / f"nuclei/{SLIDE.stem}.parquet").read_bytes())
    assert "solidity" not in read_nuclei(table, features=True).column_names
    with pytest.raises(FormatError, match="another table"):
        read_nuclei(table, columns=["solidity"])


def test_command_line(labels: np.ndarray, tmp_path: Path) -> None:
    group = click.Group(commands={c.name: c for c in COMMANDS})
    run = make_run(tmp_path / "run", labels, 1.0)

    def call(*args: str | Path) -> str:
        done = CliRunner().invoke(group, [str(a) for a in args], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert f"{labels.max()} nuclei" in call("features", run)
    assert "OD" in call("query", run, "select avg(eosin_od_mean) eosin_od_mean from features")
    call("export", run, "--to", "geopackage", "--features", "-o", tmp_path / "a.gpkg")
    assert "solidity" in geopandas.read_file(tmp_path / "a.gpkg").columns
    assert "1 slides" in call("cohort", run, "-o", tmp_path / "cohort")
    answer, _ = query(tmp_path / "cohort", "select cohort, slide_id, count(*) n, max(eccentricity) from features group by all")
    assert answer["cohort"].to_pylist() == ["CMU"]
    assert answer["n"].to_pylist() == [labels.max()]
    done = CliRunner().invoke(group, ["features", str(run), "--slide", "nothing"])
    assert isinstance(done.exception, InputError)
