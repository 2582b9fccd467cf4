"""import and evaluate read the same nuclei from a file, whatever it looks like, or refuse it with the same words."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import zarr
from click.testing import CliRunner

from wsiseg.cli.main import main
from wsiseg.evaluation import evaluate_paths

H, W = 120, 170
DISCS = [(cy, cx) for cy in (25, 60, 95) for cx in (25, 65, 105, 145)]


def discs() -> np.ndarray:
    yy, xx = np.mgrid[:H, :W]
    labels = np.zeros((H, W), np.int32)
    for k, (cy, cx) in enumerate(DISCS, start=1):
        labels[(yy - cy) ** 2 + (xx - cx) ** 2 <= 64] = k
    return labels


def square(k: int) -> list[list[int]]:
    x, y = 10 + 20 * k, 30
    return [[x, y], [x + 12, y], [x + 12, y + 12], [x, y + 12]]


def imported(path: Path, fmt: str, tmp_path: Path) -> tuple[int, str]:
    """Return the number of nuclei that the command reads from a file (-1: refused), and its output."""
    run = tmp_path / "run"
    done = CliRunner().invoke(main, ["import", str(path), "--from", fmt, "--mpp", "0.25", "--out", str(run)])
    if done.exit_code:
        return -1, done.output
    (table,) = (run / "nuclei").glob("*.parquet")
    return pq.read_metadata(table).num_rows, done.output


def both(path: Path, fmt: str, tmp_path: Path) -> tuple[int, str]:
    n, reported = imported(path, fmt, tmp_path)
    out = tmp_path / "e.json"
    done = CliRunner().invoke(main, ["evaluate", str(path), str(path), "--out", str(out)])
    if n < 0:
        assert done.exit_code == 2
        assert done.output == reported
    else:
        (image,) = json.loads(out.read_text())["images"]
        assert (image["n_pred"], image["n_truth"]) == (n, n)
        assert n == 0 or image["pq"] == 1.0
    return n, reported


def save_store(path: Path, labels: np.ndarray, version: Any = 2) -> Path:
    array = zarr.create_array(path, shape=labels.shape, dtype=labels.dtype, chunks=(64, 64), zarr_format=version)
    array[:] = labels
    return path


def test_zarr_label_maps(tmp_path: Path) -> None:
    """HoVer-NeXt writes its map as Zarr in a zip; a mask or classes in one follow the rule of label images."""
    folder = save_store(tmp_path / "map.zarr", discs())
    packed = tmp_path / "pinst_pp.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder))
    assert both(folder, "labels", tmp_path / "a")[0] == len(DISCS)
    assert both(packed, "labels", tmp_path / "b")[0] == len(DISCS)
    sevens = save_store(tmp_path / "seven.zarr", (discs() > 0).astype(np.uint8) * 7, 3)
    assert both(sevens, "labels", tmp_path / "c")[0] == len(DISCS)
    np.save(tmp_path / "truth.npy", discs())
    assert evaluate_paths(packed, tmp_path / "truth.npy").scores[0].pq == 1.0


def test_ids_with_classes_beside_them_are_no_colors(tmp_path: Path) -> None:
    """CoNSeP and PanNuke style arrays hold (ids, classes): the classes once made background of every fifth nucleus."""
    np.save(tmp_path / "both.npy", np.stack([discs(), discs() % 5], axis=2))
    n, reported = both(tmp_path / "both.npy", "labels", tmp_path)
    assert n == -1
    assert "two planes" in reported
    gray = (discs() > 0).astype(np.uint8) * 255
    np.save(tmp_path / "gray_alpha.npy", np.stack([gray, np.full_like(gray, 255)], axis=2))
    assert both(tmp_path / "gray_alpha.npy", "labels", tmp_path / "b")[0] == len(DISCS)
    scipy.io.savemat(tmp_path / "types.mat", {"type_map": (discs() % 5).astype(float)})
    assert both(tmp_path / "types.mat", "labels", tmp_path / "c")[0] == -1


def test_a_background_that_is_not_0_is_reported(tmp_path: Path) -> None:
    np.save(tmp_path / "white.npy", ((discs() == 0) * 255).astype(np.uint8))
    n, reported = both(tmp_path / "white.npy", "labels", tmp_path)
    assert n == 1
    share = np.mean(discs() == 0)
    assert f"the nucleus 1 covers {share:.0%} of the image: is it the background" in reported
    assert "background" in "".join(evaluate_paths(tmp_path / "white.npy", tmp_path / "white.npy").notes)


CELLS = [{"bbox": [[1, 2], [3, 4]], "centroid": [1, 2], "contour": square(k), "type": 1, "type_prob": 0.9} for k in range(6)]
MULTI = {"type": "MultiPolygon", "coordinates": [[[*square(k), square(k)[0]]] for k in range(6)]}
CLASSES = [
    {"type": "Feature", "geometry": MULTI, "properties": {"objectType": "annotation", "classification": {"name": "Dead"}}}
]


@pytest.mark.parametrize(
    ("name", "tree"),
    [
        ("list.json", CELLS),
        ("by_number.json", {str(k): cell for k, cell in enumerate(CELLS, start=1)}),
        ("hovernet.json", {"mag": None, "nuc": {str(k): cell for k, cell in enumerate(CELLS)}}),
        ("cells.geojson", CLASSES),
        ("cells.geojson.snappy", CLASSES),
        ("cells.json.snappy", {"cells": CELLS, "type_map": {"1": "Dead"}}),
    ],
)
def test_every_file_of_cellvit_and_hovernet(name: str, tree: Any, tmp_path: Path) -> None:
    data = json.dumps(tree).encode()
    (tmp_path / name).write_bytes(pa.compress(data, codec="snappy", asbytes=True) if name.endswith(".snappy") else data)
    n, reported = both(tmp_path / name, "cellvit", tmp_path)
    assert n == len(CELLS), reported
    assert "scanned area" not in reported, "CellViT counts from the slide's corner, also in its GeoJSON"


def test_points_are_refused_and_nothing_is_nothing(tmp_path: Path) -> None:
    points = [{"type": "Feature", "geometry": {"type": "MultiPoint", "coordinates": [[1, 2]]}, "properties": {}}] * 3
    (tmp_path / "points.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": points}))
    n, reported = both(tmp_path / "points.geojson", "qupath", tmp_path)
    assert n == -1
    assert "geometries of type MultiPoint: 3" in reported
    empty = [{"type": "Feature", "geometry": None, "properties": {}}]
    (tmp_path / "empty.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": empty}))
    n, reported = both(tmp_path / "empty.geojson", "qupath", tmp_path / "b")
    assert n == 0
    assert "objects without a geometry: 1" in reported
