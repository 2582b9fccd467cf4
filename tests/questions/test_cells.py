"""Cells: against distances of all pixels, the slide in one piece, and shapely; as QuPath and SpatialData get them."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from scipy import ndimage

from tests.command import call
from tests.export.test_features import WINDOW, blobs, make_run
from tests.run.conftest import SLIDE
from wsiseg.export.imports import ImportOptions, import_files
from wsiseg.labels import rasterize_rings
from wsiseg.questions import CellOptions, cells, cells_of_slide

MPP = 0.499


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Wobbly discs in any order of labels, one of them in a ring of another."""
    found = blobs(3, 70)
    y, x = np.mgrid[: WINDOW.h, : WINDOW.w]
    reach = np.hypot(y - 450, x - 650)
    found[reach < 60] = 0
    found[(reach > 30) & (reach < 45)] = found.max() + 1
    found[(reach > 30) & (reach < 45) & (abs(y - 450) < 3) & (x > 650)] = 0  # a gap of 5 px, which growing closes
    found[reach < 8] = found.max() + 1
    _, dense = np.unique(found, return_inverse=True)
    return dense.reshape(found.shape).astype(np.int32)


def grown(labels: np.ndarray, ids: np.ndarray, reach_squared: float) -> np.ndarray:
    """Return cells by SciPy's distances, nucleus by nucleus in the order of ids."""
    best, owner = np.full(labels.shape, np.inf), np.zeros(labels.shape, np.int32)
    near = [tuple(slice(max(0, s.start - 20), s.stop + 20) for s in place) for place in ndimage.find_objects(labels)]
    for k in np.argsort(ids) + 1:
        here = near[k - 1]
        distance = np.rint(ndimage.distance_transform_edt(labels[here] != k) ** 2)
        nearer = distance < best[here]
        best[here][nearer], owner[here][nearer] = distance[nearer], k
    owner[best > reach_squared] = 0
    for k, here in enumerate(near, 1):
        parts, n = ndimage.label(owner[here] == k)
        own = np.bincount(parts[labels[here] == k], minlength=n + 1)
        owner[here][(owner[here] == k) & (parts != own.argmax())] = 0
    return owner


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_cells_of_a_slide(labels: np.ndarray, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", labels, scale)
    expand_um = 8.0 / scale * MPP / 0.5
    call("cells", run, "--expand-um", expand_um)
    path = run / f"cells/{SLIDE.stem}.parquet"
    found, nuclei = geopandas.read_parquet(path), geopandas.read_parquet(run / f"nuclei/{SLIDE.stem}.parquet")
    assert found.nucleus_id.tolist() == nuclei.nucleus_id.tolist()
    assert found.is_valid.all()
    assert (found.area * MPP**2).to_numpy() == pytest.approx(found.area_um2.to_numpy(), rel=1e-6)
    assert found.geometry.to_numpy().size == labels.max()

    window = np.zeros((WINDOW.h + 60, WINDOW.w + 60), np.int32)
    window[30:-30, 30:-30] = labels
    anchor = nuclei.nucleus_id.to_numpy()
    where = (anchor >> 31) - WINDOW.y + 30, (anchor & (2**31 - 1)) - WINDOW.x + 30
    order = window[where]  # label of each row
    rows = np.zeros(labels.max() + 1, np.int32)
    rows[order] = np.arange(1, len(order) + 1)
    expected = grown(rows[window], anchor, (expand_um / MPP * scale) ** 2)
    drawn = np.zeros_like(expected)
    for k, shape in enumerate(found.geometry, 1):
        rings = [np.asarray(r.coords) * scale for r in (shape.exterior, *shape.interiors)]
        offsets = np.cumsum([0, *map(len, rings)])
        own = np.zeros(len(rings), np.int64)
        x, y = rings[0].min(axis=0).astype(int).tolist()
        w, h = (rings[0].max(axis=0).astype(int) - (x, y)).tolist()
        mask = rasterize_rings(np.concatenate(rings), offsets, (h, w), ring_polygons=own, origin=(x, y)) > 0
        here = drawn[y - WINDOW.y + 30 :, x - WINDOW.x + 30 :][:h, :w]
        assert not here[mask].any(), "cells overlap"
        here[mask] = k
    np.testing.assert_array_equal(drawn, expected)
    assert sum(len(s.interiors) for s in found.geometry) == 1
    inside = shapely.covers(found.geometry.to_numpy(), nuclei.geometry.to_numpy())
    assert inside.all()

    monkeypatch.setattr(cells, "WINDOW_PX", 1 << 12)  # windows of a nucleus or two
    whole = path.read_bytes()
    cells_of_slide(run / f"nuclei/{SLIDE.stem}.parquet", CellOptions(expand_um, overwrite=True))
    assert path.read_bytes() == whole


def test_qupath_gets_cells_with_nuclei(labels: np.ndarray, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", labels, 1.0)
    out = tmp_path / "a.geojson"
    assert "wsiseg cells" in call("export", run, "--to", "qupath", "--cells", "-o", out, code=2)
    call("cells", run, "--expand-um", 3)
    call("export", run, "--to", "qupath", "--cells", "-o", out)
    table, made = (geopandas.read_parquet(run / f"{f}/{SLIDE.stem}.parquet") for f in ("nuclei", "cells"))
    features = json.loads(out.read_text())["features"]
    assert len(features) == len(table)
    for feature, nucleus, cell in zip(features, table.geometry, made.geometry, strict=True):
        assert feature["properties"]["objectType"] == "cell"
        assert shapely.geometry.shape(feature["geometry"]).equals(cell)
        assert shapely.geometry.shape(feature["nucleusGeometry"]).equals(nucleus)
    again = tmp_path / "again"
    (done,) = import_files([out], "qupath", again, ImportOptions(mpp=MPP, slide_id="S"))
    back = pq.read_table(again / "nuclei/S.parquet").to_pandas()
    assert done.n_nuclei == len(table)
    assert sorted(back.area_px) == pytest.approx(sorted(table.area_px))  # the nucleus of a cell is what is imported


def test_spatialdata_gets_cells(labels: np.ndarray, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", labels, 1.0)
    call("cells", run, "--expand-um", 3)
    call("export", run, "--to", "spatialdata", "--cells", "-o", tmp_path / "a.zarr")
    shapes = geopandas.read_parquet(tmp_path / "a.zarr/shapes/cells/shapes.parquet")
    made = geopandas.read_parquet(run / f"cells/{SLIDE.stem}.parquet")
    assert shapes.index.tolist() == made.nucleus_id.tolist()
    assert shapes.geometry.geom_equals(made.geometry.set_axis(shapes.index)).all()


def test_cells_are_resumed_and_never_mixed(labels: np.ndarray, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", labels, 1.0)
    assert "1 slides" in call("cells", run, "--expand-um", 3)
    assert "1 finished already" in call("cells", run, "--expand-um", 3)
    assert "there are cells of 3.0 um" in call("cells", run, "--expand-um", 4, code=1)
    assert "1 slides" in call("cells", run, "--expand-um", 4, "--overwrite")
    assert "above 0" in call("cells", run, "--expand-um", 0, code=2)
    assert "expected at most" in call("cells", run, "--expand-um", 1000, "--overwrite", code=1)
    assert "omit --cells" in call("export", run, "--to", "csv", "--cells", "-o", tmp_path / "a.csv", code=2)


def test_imported_nuclei_that_overlap(tmp_path: Path) -> None:
    squares = [(10, 10, 20), (10, 10, 20), (40, 12, 10), (44, 14, 4), (95, 95, 20)]
    features = [
        {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(shapely.box(x, y, x + s, y + s))}
        for x, y, s in squares
    ]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    options = ImportOptions(mpp=0.5, slide_id="S", width_px=100, height_px=100)
    list(import_files([tmp_path / "a.geojson"], "qupath", tmp_path / "run", options))
    notes = call("cells", tmp_path / "run", "--expand-um", 2.5)
    assert "4 cells of 5 nuclei" in notes
    assert "1 nuclei are covered by others" in notes
    found = geopandas.read_parquet(tmp_path / "run/cells/S.parquet")
    kept = found[found.geometry.notna()]
    assert kept.area.sum() == pytest.approx(kept.union_all().area)  # no overlap
    assert kept.bounds.max().max() == 100  # cut at the slide
    call("export", tmp_path / "run", "--to", "qupath", "--cells", "-o", tmp_path / "b.geojson")
    assert len(json.loads((tmp_path / "b.geojson").read_text())["features"]) == 5


def test_workers_share_a_slide_and_give_the_same_bytes(run: Path) -> None:
    call("cells", run, "--expand-um", 3)
    whole = {p.name: p.read_bytes() for p in (run / "cells").iterdir()}
    assert {pq.read_metadata(p).num_row_groups for p in (run / "cells").iterdir()} == {4, 1}
    notes = call("cells", run, "--expand-um", 3, "--overwrite", "--workers", 2)
    assert "2 slides" in notes
    assert {p.name: p.read_bytes() for p in (run / "cells").iterdir()} == whole


def test_a_damaged_row_group_is_reported(run: Path) -> None:
    damaged = run / "nuclei/B.parquet"
    place = pq.read_metadata(damaged).row_group(0).column(0).data_page_offset
    content = bytearray(damaged.read_bytes())
    content[place : place + 64] = bytes(64)
    damaged.write_bytes(content)
    notes = call("cells", run, "--expand-um", 3, code=1)
    assert f"{damaged}: row group 0 cannot be read" in notes
    assert "1 slides (2,000 cells), 0 finished already, 1 failed" in notes
