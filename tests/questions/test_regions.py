"""Regions: against plain loops over shapely geometries and their own files in four formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import geopandas
import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.command import call
from wsiseg import read_nuclei
from wsiseg.cli.main import main
from wsiseg.coordinates import parse_frame
from wsiseg.errors import FormatError, InputError
from wsiseg.questions import pair_annotations, tables_of, tissue_area
from wsiseg.questions.annotated import place_regions
from wsiseg.read import TissueMask
from wsiseg.tables import open_nuclei
from wsiseg.tables.annotations import read_annotations


def blob(rng: np.random.Generator, center: tuple[float, float], radius: float, n: int = 60) -> Any:
    """Return a star-shaped polygon with a hole."""
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    reach = radius * (0.6 + 0.4 * rng.random(n))
    outer = np.asarray(center) + np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None]
    inner = np.asarray(center) + np.stack([np.cos(angle), np.sin(angle)], axis=1)[::-1] * radius * 0.2
    return shapely.Polygon(outer.round(2), [inner.round(2)])


def feature(shape: Any, class_name: str = "Tumor", name: str = "", **more: Any) -> dict[str, Any]:
    properties = {"objectType": "annotation", "classification": {"name": class_name, "color": [200, 0, 0]}, **more}
    properties |= {"name": name} if name else {}
    return {"type": "Feature", "id": "x", "geometry": shapely.geometry.mapping(shape), "properties": properties}


def plain(shape: Any, class_name: str = "Tumor", name: str = "") -> dict[str, Any]:
    """Return a feature that is not QuPath's: it counts from the slide's corner."""
    return {
        "type": "Feature",
        "geometry": shapely.geometry.mapping(shape),
        "properties": {"class": class_name, "name": name},
    }


def drawn_regions() -> list[tuple[str, Any]]:
    """Return regions that overlap, have holes, meet along an edge, or are of several parts."""
    rng = np.random.default_rng(2)
    found = [(f"c{k % 3}", blob(rng, tuple(rng.uniform(2500, 8500, 2)), r)) for k, r in enumerate((900, 1500, 400, 2500, 700))]
    found += [("c0", shapely.box(3000, 3000, 4000, 5000)), ("c0", shapely.box(4000, 3000, 5000, 5000))]
    found += [("c1", shapely.MultiPolygon([shapely.box(7000, 2000, 8000, 2500), shapely.box(2000, 7000, 2600, 8000)]))]
    return found


def write_geojson(path: Path, features: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def nuclei_of(table: Path) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, float]:
    """Return the table, its polygons, the center of each marker's pixel, and um/px."""
    facts = json.loads(pq.read_schema(table).metadata[b"wsiseg"])
    frame = pq.read_table(table).to_pandas()
    ids = frame["nucleus_id"].to_numpy()
    points = np.stack([ids % 2**31 + 0.5, ids // 2**31 + 0.5], axis=1) / facts["scale"]
    return frame, shapely.from_wkb(frame["geometry"].to_numpy()), shapely.points(points), facts["slide"]["mpp"]


@pytest.mark.parametrize("belongs", ["marker", "area"])
@pytest.mark.parametrize("slide_id", ["A", "B"])
def test_rows_are_those_of_a_plain_loop(run: Path, tmp_path: Path, belongs: str, slide_id: str) -> None:
    shapes = drawn_regions()
    if slide_id == "B":
        shapes = [(c, shapely.transform(s, lambda xy: xy / 3 + 400)) for c, s in shapes]
    path = write_geojson(
        tmp_path / "annotations" / f"{slide_id}.geojson", [plain(s, c, f"n{k}") for k, (c, s) in enumerate(shapes)]
    )
    out = tmp_path / "out.parquet"
    call("regions", run, path.parent, "-o", out, "--belongs", belongs, "--area-frac", 0.6)
    table = geopandas.read_parquet(out)
    frame, polygons, points, mpp = nuclei_of(run / f"nuclei/{slide_id}.parquet")
    tissue = TissueMask.load(run / f"slides/{slide_id}.tissue.png")
    classes = sorted({c for c, _ in shapes})
    asked = [("region", [s]) for _, s in shapes] + [("class", [s for d, s in shapes if d == c]) for c in classes]
    assert table["kind"].tolist() == [kind for kind, _ in asked]
    assert table["class_name"].tolist() == [c for c, _ in shapes] + classes
    assert 50 < table["n_nuclei"].max() < len(frame)
    for (_, parts), row in zip(asked, table.itertuples(), strict=True):
        whole = shapely.union_all(parts)
        if belongs == "marker":
            inside = np.array([any(s.intersects(p) for s in parts) for p in points])
        else:
            inside = np.array([p.intersection(whole).area >= 0.6 * p.area for p in polygons])
        area = frame["area_um2"][inside].to_numpy(np.float64)
        assert row.n_nuclei == inside.sum()
        assert row.area_mm2 == pytest.approx(whole.area * mpp**2 / 1e6)
        assert row.nuclei_per_region_mm2 == pytest.approx(inside.sum() / row.area_mm2)
        assert row.tissue_mm2 == pytest.approx(tissue_loop(whole, tissue) * mpp**2 / 1e6, rel=1e-9)
        assert row.tissue_frac == pytest.approx(row.tissue_mm2 / row.area_mm2)
        assert row.nuclei_per_tissue_mm2 == pytest.approx(inside.sum() / row.tissue_mm2)
        assert row.nuclear_area_frac == pytest.approx(area.sum() / 1e6 / row.area_mm2)
        if len(area):
            assert row.area_mean_um2 == pytest.approx(area.mean())
            assert row.area_std_um2 == pytest.approx(area.std())
            assert (row.area_p05_um2, row.area_p50_um2) == pytest.approx(tuple(np.quantile(area, [0.05, 0.5])))
            assert row.material_prob_mean == pytest.approx(frame["material_prob"][inside].mean() / 255)
        assert row.geometry.equals_exact(whole, 1e-6, normalize=True) or row.geometry.equals(whole)
        assert row.belongs == belongs


def tissue_loop(shape: Any, tissue: TissueMask) -> float:
    """Return the area of a shape on tissue, one px of the mask after the other."""
    shapely.prepare(shape)
    y, x = np.nonzero(tissue.mask)
    x0, y0 = tissue.x0 + x * tissue.px_w, tissue.y0 + y * tissue.px_h
    return float(shapely.area(shapely.intersection(shapely.box(x0, y0, x0 + tissue.px_w, y0 + tissue.px_h), shape)).sum())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(3, 40), scale=st.floats(0.3, 40))
def test_tissue_area_is_exact(seed: int, n: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    shape = shapely.union_all([blob(rng, tuple(rng.uniform(-20, 120, 2)), rng.uniform(1, 90), n) for _ in range(3)])
    if seed % 3 == 0:
        shape = shapely.union(shape, shapely.box(*np.floor(shape.bounds)))  # edges along the lines of the grid
    tissue = TissueMask((rng.random((13, 17)) < 0.6).astype(np.uint8), scale, scale * 1.25, -7.5, 3.0)
    assert tissue_area(shape, tissue) == pytest.approx(tissue_loop(shape, tissue), rel=1e-9, abs=1e-7)


def asap_xml(shapes: list[tuple[str, Any]]) -> str:
    parts = []
    for k, (class_name, shape) in enumerate(shapes):
        points = "".join(
            f'<Coordinate Order="{j}" X="{x}" Y="{y}" />'
            for j, (x, y) in enumerate(shapely.get_coordinates(shape.exterior)[:-1])
        )
        parts.append(
            f'<Annotation Name="r{k}" Type="Polygon" PartOfGroup="{class_name}" Color="#F4FA58">'
            f"<Coordinates>{points}</Coordinates></Annotation>"
        )
    groups = (
        '<AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#ff0000"><Attributes /></Group></AnnotationGroups>'
    )
    dot = '<Annotation Name="d" Type="Dot" PartOfGroup="None" Color="#F4FA58"><Coordinates><Coordinate Order="0" X="5" Y="5" />'
    dot += "</Coordinates></Annotation>"
    return (
        f'<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>{"".join(parts)}{dot}</Annotations>{groups}</ASAP_Annotations>'
    )


def imagescope_xml(shapes: list[tuple[str, Any]], mpp: float = 0.25) -> str:
    """Return layers, one a class; holes are negative regions."""
    layers = []
    for k, name in enumerate(dict.fromkeys(c for c, _ in shapes)):
        regions = []
        for _, shape in (s for s in shapes if s[0] == name):
            for j, ring in enumerate((shape.exterior, *shape.interiors)):
                points = "".join(f'<Vertex X="{x}" Y="{y}" Z="0" />' for x, y in shapely.get_coordinates(ring)[:-1])
                regions.append(
                    f'<Region Id="{len(regions) + 1}" Type="0" Zoom="1" Selected="0" NegativeROA="{int(j > 0)}" Text="">'
                    f"<Attributes /><Vertices>{points}</Vertices></Region>"
                )
        regions.append(
            '<Region Id="99" Type="4" Text=""><Vertices><Vertex X="1" Y="1" Z="0"/><Vertex X="9" Y="9"/></Vertices></Region>'
        )
        layers.append(
            f'<Annotation Id="{k + 1}" Name="{name}" LineColor="65280" Visible="1"><Attributes/>'
            f"<Regions><RegionAttributeHeaders/>{''.join(regions)}</Regions><Plots/></Annotation>"
        )
    return f'<Annotations MicronsPerPixel="{mpp}">{"".join(layers)}</Annotations>'


def test_every_format_gives_the_same_rows(run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    shapes = [("Tumor", blob(rng, (4000, 4000), 900)), ("Stroma", blob(rng, (7000, 6500), 1500))]
    shift = lambda s: shapely.transform(s, lambda xy: xy - (300, 200))  # noqa: E731  (QuPath counts from the scanned area)
    qupath = [feature(shift(s), c) for c, s in shapes]
    cell = feature(shapely.box(10, 10, 20, 20), "Nucleus", objectType="detection")
    point = {**plain(shapely.Point(7, 7)), "properties": {"objectType": "annotation"}}
    contents = {
        "collection.geojson": json.dumps({"type": "FeatureCollection", "features": [*qupath, cell, point]}),
        "list.json": json.dumps(qupath),
        "lines.geojsonl": "\n".join(map(json.dumps, qupath)),
        "plain.geojson": json.dumps({"type": "FeatureCollection", "features": [plain(s, c) for c, s in shapes]}),
        "imagescope.xml": imagescope_xml(shapes),
    }
    rows = {}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
        reported = call("regions", run, tmp_path / name, "--slide", "A", "-o", tmp_path / f"{name}.parquet")
        assert ("objects of type detection: 1" in reported) == (name == "collection.geojson")
        assert ("kind ruler: 2" in reported) == (name == "imagescope.xml")
        frame = pd.read_parquet(tmp_path / f"{name}.parquet").drop(columns=["annotation", "geometry", "name"])
        rows[name] = frame
        pd.testing.assert_frame_equal(frame, rows.get("plain.geojson", frame), rtol=1e-9)
    pd.testing.assert_frame_equal(rows["collection.geojson"], rows["imagescope.xml"], rtol=1e-9)
    assert rows["list.json"]["n_nuclei"].min() > 10
    # ASAP has no holes
    (tmp_path / "asap.xml").write_text(asap_xml(shapes))
    write_geojson(tmp_path / "filled.geojson", [plain(shapely.Polygon(s.exterior), c) for c, s in shapes])
    both = []
    for name in ("asap.xml", "filled.geojson"):
        reported = call("regions", run, tmp_path / name, "--slide", "A", "-o", tmp_path / f"{name}.parquet")
        assert ("type Dot: 1" in reported) == (name == "asap.xml")
        both.append(pd.read_parquet(tmp_path / f"{name}.parquet").drop(columns=["annotation", "geometry", "name"]))
    pd.testing.assert_frame_equal(both[0], both[1], rtol=1e-9)
    assert both[0]["n_nuclei"][0] > rows["list.json"]["n_nuclei"][0]


def test_shapes_of_imagescope(tmp_path: Path) -> None:
    def region(kind: int, points: list[tuple[float, float]]) -> str:
        vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in points)
        return f'<Region Id="1" Type="{kind}" Text="t{kind}"><Vertices>{vertices}</Vertices></Region>'

    corners = [(10.0, 20.0), (110.0, 20.0), (110.0, 60.0), (10.0, 60.0)]
    regions = [region(1, corners), region(1, [corners[0], corners[2]]), region(2, [corners[0], corners[2]]), region(2, corners)]
    layer = (
        f'<Annotation Id="1" Name=""><Attributes><Attribute Name="Necrosis" Value=""/></Attributes><Regions>{"".join(regions)}'
    )
    path = tmp_path / "a.xml"
    path.write_text(f'<Annotations MicronsPerPixel="0,25">{layer}</Regions></Annotation></Annotations>')
    found = read_annotations(path)
    areas = [shapely.Polygon(d.polygons[0][0]).area for d in found.regions]
    assert areas[:2] == [4000, 4000]
    assert areas[2:] == pytest.approx([np.pi * 50 * 20] * 2, rel=1e-4)
    assert {d.class_name for d in found.regions} == {"Necrosis"}
    assert found.mpp == 0.25


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<!DOCTYPE x [<!ENTITY a "b">]><Annotations/>', "DOCTYPE"),
        ("<Annotations><Annotation></Annotations>", "damaged XML"),
        ("<svg/>", "<svg>"),
        ('<ASAP_Annotations><Annotation><Coordinate X="a" Y="1"/></Annotation></ASAP_Annotations>', "coordinate"),
        ('<ASAP_Annotations><Annotations><Annotation Type="Dot"/></Annotations></ASAP_Annotations>', "no region"),
        ('{"type": "FeatureCollection", "features": [', "truncated"),
        ('{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}', "no region"),
        ('{"type": "FeatureCollection", "features": []}', "expected at least one region"),
        ("", "expected"),
    ],
)  # fmt: skip
def test_files_without_regions_are_refused(run: Path, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    reported = call("regions", run, tmp_path / "a.xml", "--slide", "A", "-o", tmp_path / "o.csv", code=1)
    assert words in reported
    assert "a.xml" in reported
    assert not (tmp_path / "o.csv").exists()


def test_frames_that_do_not_fit_are_reported_or_refused_with_numbers(run: Path, tmp_path: Path) -> None:
    where = tmp_path / "a.geojson"
    base = ["regions", run, where, "--slide", "A", "--overwrite", "-o", tmp_path / "o.csv"]
    inside = shapely.box(2000, 2000, 9000, 9000)
    write_geojson(where, [plain(inside)])
    assert "note" not in call(*base)
    expected = pd.read_csv(tmp_path / "o.csv")["n_nuclei"][0]
    assert expected > 500
    # drawn on a level 4 times smaller, or in um: inside the slide, but off its tissue
    write_geojson(where, [plain(shapely.transform(shapely.box(2000, 200, 9000, 2400), lambda xy: xy / 4))])
    reported = call(*base)
    assert "--frame slide,down=4" in reported
    assert "of the area of 1 regions is tissue" in reported
    call(*base, "--frame", "down=4")
    assert pd.read_csv(tmp_path / "o.csv")["n_nuclei"][0] > 0
    # four times too large: outside
    write_geojson(where, [plain(shapely.box(50_000, 50_000, 60_000, 60_000))])
    reported = call(*base, code=1)
    assert "outside" in reported
    assert "60000" in reported
    # partly outside: what is inside counts, the rest is told
    write_geojson(
        where,
        [
            plain(inside),
            plain(shapely.box(11_000, 2000, 13_000, 4000), "edge"),
            plain(shapely.box(20_000, 0, 21_000, 9), "gone"),
        ],
    )
    reported = call(*base)
    assert "1 of 3 regions are outside the slide: 2 gone" in reported
    rows = pd.read_csv(tmp_path / "o.csv")
    assert rows["outside_frac"][:3].tolist() == pytest.approx([0, 0.5, 1])
    assert rows["area_mm2"][1] == pytest.approx(1000 * 2000 * 0.25**2 / 1e6)
    assert rows["n_nuclei"][2] == 0
    # around all of the slide: every corner is outside, and it fits
    write_geojson(where, [plain(shapely.box(-10, -10, 12_010, 12_010))])
    reported = call(*base)
    assert pd.read_csv(tmp_path / "o.csv")["n_nuclei"][0] == 2000
    # a file that states another scale
    (tmp_path / "b.xml").write_text(imagescope_xml([("Tumor", blob(np.random.default_rng(1), (5000, 5000), 900))], mpp=0.5))
    reported = call("regions", run, tmp_path / "b.xml", "--slide", "A", "-o", tmp_path / "b.csv")
    assert "it states 0.5 um/px, the slide has 0.25" in reported
    reported = call(*base, "--frame", "inches", code=2)
    assert "Expected a frame" in reported


def test_outlines_that_cross_themselves_are_reported(made: dict[str, Path], tmp_path: Path) -> None:
    eight = shapely.Polygon([(2000, 2000), (4000, 4000), (4000, 2000), (2000, 4000)])
    found = read_annotations(write_geojson(tmp_path / "a.geojson", [plain(eight)]))
    regions, notes = place_regions(found, open_nuclei(made["A"]), parse_frame(""), None)
    assert "outlines of 1 regions cross themselves" in notes[0]
    assert regions[0].geometry.area == pytest.approx(2_000_000)


def test_files_are_paired_with_slides_by_name(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ann"
    shape = [plain(shapely.box(2000, 2000, 4000, 4000))]
    for name in ("A_tumor.geojson", "C.geojson", "D.xml", "notes.txt"):
        write_geojson(folder / name, shape)
    reported = call("regions", run, folder, "-o", tmp_path / "o.csv")
    assert "A_tumor.geojson is used for slide A" in reported
    assert "slides without an annotation file: 1 (B)" in reported
    assert "annotation files without a slide: 2 (C.geojson, D.xml)" in reported
    write_geojson(folder / "A.json", shape)
    with pytest.raises(InputError, match="Slide A has two annotation files"):
        pair_annotations(tables_of(run), folder)
    with pytest.raises(InputError, match=r"none of 1 annotation files \(C.geojson\).*2 slides \(A, B\)"):
        pair_annotations(tables_of(run), folder / "C.geojson")
    assert len(pair_annotations(tables_of(run, ["B"]), folder / "C.geojson").pairs) == 1
    for old, new in (("A", "TCGA-05-4249-01Z-00-DX1.9fce0297"), ("B", "TCGA-05-4249-01Z-00-DX2.00000000")):
        (run / f"nuclei/{old}.parquet").rename(run / f"nuclei/{new}.parquet")
    for name in ("TCGA-05-4249-01Z-00-DX1.geojson", "TCGA-05-4249-01Z-00-DX2.00000000.svs.xml"):
        write_geojson(tmp_path / "barcodes" / name, shape)
    pairs = pair_annotations(tables_of(run), tmp_path / "barcodes").pairs
    assert [(t.stem[:23], a.name[:23]) for t, a in pairs] == [(f"TCGA-05-4249-01Z-00-DX{k}",) * 2 for k in (1, 2)]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="expected annotation files"):
        pair_annotations(tables_of(run), empty)


def test_one_bad_file_does_not_stop_the_others(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ann"
    write_geojson(folder / "A.geojson", [plain(shapely.box(2000, 2000, 4000, 4000))])
    (folder / "B.xml").write_text("<broken")
    reported = call("regions", run, folder, "-o", tmp_path / "o.csv", code=1)
    assert "B: " in reported
    assert "damaged XML" in reported
    assert set(pd.read_csv(tmp_path / "o.csv")["slide_id"]) == {"A"}
    assert "already exists" in call("regions", run, folder, "-o", tmp_path / "o.csv", code=2)
    done = CliRunner().invoke(main, ["regions", str(run), str(folder), "-o", str(tmp_path / "o.txt")])
    assert "(.parquet, .csv, .h5ad)" in done.output


def test_distances_are_those_of_a_loop(run: Path, tmp_path: Path) -> None:
    shapes = drawn_regions()
    path = write_geojson(tmp_path / "a.geojson", [plain(s, c) for c, s in shapes])
    call("regions", run, path, "--slide", "A", "-o", tmp_path / "o.parquet", "--distances", tmp_path / "d")
    frame, _, points, mpp = nuclei_of(run / "nuclei/A.parquet")
    got = pd.read_parquet(tmp_path / "d/A.parquet")
    assert got["nucleus_id"].tolist() == frame["nucleus_id"].tolist()
    first = [next((k for k, (_, s) in enumerate(shapes) if s.intersects(p)), -1) for p in points]
    assert got["region"].tolist() == first
    for column, wanted in (("border_um", {"c0", "c1", "c2"}), ("border_um_c0", {"c0"}), ("border_um_c1", {"c1"})):
        whole = shapely.union_all([s for c, s in shapes if c in wanted])
        expected = [p.distance(whole.boundary) * mpp * (-1 if whole.intersects(p) else 1) for p in points]
        assert got[column].to_numpy() == pytest.approx(np.array(expected), abs=1e-3)
    assert (got["border_um_c0"] < 0).sum() > 10


def test_within_is_a_question_to_read_nuclei(run: Path) -> None:
    shape = drawn_regions()[0][1]
    frame, polygons, points, _ = nuclei_of(run / "nuclei/A.parquet")
    inside = shapely.intersects(shape, points)
    got = read_nuclei(run, slide_id="A", within=shape)
    assert got["nucleus_id"].to_pylist() == frame["nucleus_id"][inside].tolist()
    assert read_nuclei(run / "nuclei/A.parquet", columns=["area_um2"], within=shape.__geo_interface__).column_names == [
        "area_um2"
    ]
    window = (2000, 2000, 3000, 3000)
    both = inside & shapely.intersects(shapely.envelope(polygons), shapely.box(2000, 2000, 5000, 5000))
    assert 0 < both.sum() < inside.sum()
    assert read_nuclei(run / "nuclei/A.parquet", window, ["cx"], within=shape).num_rows == both.sum()
    assert read_nuclei(run / "nuclei/A.parquet", within=shapely.box(0, 0, 5, 5)).num_rows == 0
    for bad in (shapely.Point(1, 1), "tumor", shapely.Polygon()):
        with pytest.raises(InputError, match="geometry with an area"):
            read_nuclei(run, within=bad)


def test_anndata_has_an_observation_a_row(run: Path, tmp_path: Path) -> None:
    path = write_geojson(tmp_path / "a.geojson", [plain(s, c) for c, s in drawn_regions()])
    call("regions", run, path, "--slide", "A", "-o", tmp_path / "o.h5ad", "--to", "anndata")
    call("regions", run, path, "--slide", "A", "-o", tmp_path / "o.parquet")
    table = geopandas.read_parquet(tmp_path / "o.parquet")
    with h5py.File(tmp_path / "o.h5ad") as file:
        names = file["var/_index"].asstr()[:].tolist()
        assert file["X"].shape == (len(table), len(names))
        assert file["X"][:, names.index("n_nuclei")].tolist() == table["n_nuclei"].tolist()
        assert file["obs/class_name"].asstr()[:].tolist() == table["class_name"].tolist()
        assert file["obsm/spatial"][:] == pytest.approx(shapely.get_coordinates(table.geometry.centroid))


def test_an_empty_table_and_a_slide_without_a_mask(run: Path, tmp_path: Path) -> None:
    table = pq.read_table(run / "nuclei/A.parquet")
    pq.write_table(table.slice(0, 0), run / "nuclei/A.parquet")
    (run / "slides/A.tissue.png").unlink()
    path = write_geojson(tmp_path / "a.geojson", [plain(shapely.box(2000, 2000, 4000, 4000))])
    call("regions", run, path, "--slide", "A", "-o", tmp_path / "o.parquet", "--distances", tmp_path / "d")
    row = pd.read_parquet(tmp_path / "o.parquet").iloc[0]
    assert (row["n_nuclei"], row["nuclei_per_region_mm2"]) == (0, 0)
    assert pd.isna(row["area_mean_um2"])
    assert pd.isna(row["tissue_mm2"])
    assert pq.read_table(tmp_path / "d/A.parquet").num_rows == 0


def test_only_row_groups_that_regions_meet_are_read(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, k, **o: read.append(k) or whole(self, k, **o))
    path = write_geojson(tmp_path / "a.geojson", [plain(shapely.box(1500, 1500, 1900, 1900))])
    call("regions", run, path, "--slide", "A", "-o", tmp_path / "o.parquet")
    assert 0 < len(read) < pq.read_metadata(run / "nuclei/A.parquet").num_row_groups


def test_help_has_an_example() -> None:
    text = main.commands["regions"].get_help(click.Context(main.commands["regions"]))
    assert "wsiseg regions RUN annotations/ -o regions.parquet" in text


def test_impossible_shares_are_refused(run: Path, tmp_path: Path) -> None:
    path = write_geojson(tmp_path / "a.geojson", [plain(shapely.box(0, 0, 9, 9))])
    assert "--area-frac" in call("regions", run, path, "--slide", "A", "-o", tmp_path / "o.csv", "--area-frac", 0, code=2)
    with pytest.raises(FormatError, match="cannot be read"):
        read_annotations(tmp_path / "none.xml")
