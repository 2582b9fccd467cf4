"""ASAP and ImageScope XML: corner by corner the table's polygons, and regions again for ``wsiseg regions``."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import geopandas
import pytest
import shapely

from tests.command import call
from wsiseg.export.imports import ImportOptions, import_files
from wsiseg.tables.annotations import read_annotations


@pytest.mark.parametrize(
    ("fmt", "item", "point", "name"), [("asap", "Annotation", "Coordinate", "Name"), ("imagescope", "Region", "Vertex", "Text")]
)
def test_every_corner_is_there(table_path: Path, tmp_path: Path, fmt: str, item: str, point: str, name: str) -> None:
    out = tmp_path / "a.xml"
    assert "2,000 nuclei" in call("export", table_path, "--to", fmt, "-o", out)
    table = geopandas.read_parquet(table_path)
    root = ElementTree.parse(out).getroot()
    items = root.findall(f".//{item}") if item == "Region" else root.find("Annotations").findall(item)
    assert [int(i.get(name)) for i in items] == table.nucleus_id.tolist()
    for node, shape in zip(items, table.geometry, strict=True):
        corners = [(float(p.get("X")), float(p.get("Y"))) for p in node.iter(point)]
        assert corners == list(shape.exterior.coords)
        if fmt == "asap":
            assert [int(p.get("Order")) for p in node.iter(point)] == list(range(len(corners)))
    read = read_annotations(out)
    assert len(read.regions) == 2000
    assert {r.class_name for r in read.regions} == {"Nucleus"}
    assert read.mpp == (0.25 if fmt == "imagescope" else None)


@pytest.mark.parametrize("fmt", ["asap", "imagescope"])
def test_classes_are_groups_and_layers(tmp_path: Path, fmt: str) -> None:
    classes = ["Tumor", 'Odd & "quoted" <name>', "Tumor", None]
    features = []
    for x, c in zip((5, 25, 45, 65), classes, strict=True):
        geometry = shapely.geometry.mapping(shapely.box(x, 5, x + 9, 14))
        features.append({"type": "Feature", "properties": {"class": c} if c else {}, "geometry": geometry})
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    list(import_files([tmp_path / "a.geojson"], "qupath", tmp_path / "run", ImportOptions(mpp=0.5, slide_id="S")))
    call("export", tmp_path / "run", "--to", fmt, "-o", tmp_path / "a.xml")
    found = {round(r.polygons[0][0][:, 0].min()): r.class_name for r in read_annotations(tmp_path / "a.xml").regions}
    assert found == dict(zip((5, 25, 45, 65), [c or "Nucleus" for c in classes], strict=True))


@pytest.mark.parametrize("fmt", ["asap", "imagescope"])
def test_no_nucleus_is_a_valid_file(table_path: Path, tmp_path: Path, fmt: str) -> None:
    call("export", table_path, "--to", fmt, "--region", "0,0,10,10", "-o", tmp_path / "a.xml")
    assert read_annotations(tmp_path / "a.xml").regions == []
