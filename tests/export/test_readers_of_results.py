"""Other tools' files as people have them: import and evaluate read the same, count what they leave out, or name the place.

The truth is plain: squares at known places, label images made of discs, and what NumPy or pyarrow itself wrote.
"""

from __future__ import annotations

import bz2
import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
import zarr
from PIL import Image
from scipy import sparse
from scipy.io import savemat

from wsiseg.errors import FormatError
from wsiseg.evaluation import evaluate_paths, load_instances
from wsiseg.export.imports import ImportOptions, import_files
from wsiseg.labels import read_label_file, split_components
from wsiseg.read import ArraySlide, tissue_from_file


def square(x: float, y: float = 30, r: float = 8) -> list[list[float]]:
    return [[x - r, y - r], [x + r, y - r], [x + r, y + r], [x - r, y + r], [x - r, y - r]]


def polygon(*rings: list) -> dict:
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry: object, kind: str = "detection", **more: object) -> dict:
    properties = {"objectType": kind, "classification": {"name": "Tumor", "color": [1, 2, 3]}, **more}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


TEN = [feature(polygon(square(30 + 40 * i))) for i in range(10)]


def collection(features: list, **more: object) -> dict:
    return {"type": "FeatureCollection", "features": features, **more}


def old(kind: str, geometry: dict) -> dict:
    """As QuPath up to 0.2 wrote it: the kind stands in the id, measurements are a list."""
    measures = [{"name": "Detection probability", "value": 0.8}]
    return {"type": "Feature", "id": f"Path{kind}Object", "geometry": geometry, "properties": {"measurements": measures}}


LEFT_OUT = {
    "null": (feature(None), "objects without a geometry"),
    "no rings": (feature(polygon()), "empty geometries"),
    "an empty ring": (feature(polygon([])), "empty geometries"),
    "null coordinates": (feature({"type": "Polygon", "coordinates": None}), "empty geometries"),
    "no parts": (feature({"type": "MultiPolygon", "coordinates": []}), "empty geometries"),
    "an empty part": (feature({"type": "MultiPolygon", "coordinates": [[]]}), "empty geometries"),
    "no members": (feature({"type": "GeometryCollection", "geometries": []}), "empty geometries"),
    "two points": (feature(polygon([[5, 5], [6, 6], [5, 5]])), "outlines of fewer than three points"),
    "there and back": (feature(polygon([[5, 5], [6, 6], [5, 5], [5, 5]])), "outlines without area"),
    "a bent line": (feature(polygon([[5, 5], [9, 5], [9, 9], [9, 5], [5, 5]])), "outlines without area"),
    "a point": (feature({"type": "Point", "coordinates": [1, 2]}), "geometries of type Point"),
    "a line": (feature({"type": "LineString", "coordinates": [[1, 2], [3, 4]]}), "geometries of type LineString"),
    "an annotation around": (feature(polygon(square(200, 200, 190)), "annotation"), "objects of type annotation"),
    "a tile around": (feature(polygon(square(200, 200, 190)), "tile"), "objects of type tile"),
    "the root": (feature(polygon(square(200, 200, 190)), "root"), "objects of type root"),
    "an old annotation": (old("Annotation", polygon(square(200, 200, 190))), "objects of type annotation"),
    "nothing": (None, "objects without a geometry"),
}


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_no_nucleus_is_left_out_and_counted_everywhere(tmp_path: Path, name: str, first: bool) -> None:
    odd, reason = LEFT_OUT[name]
    path, plain = tmp_path / "a.geojson", tmp_path / "plain.geojson"
    path.write_text(json.dumps(collection([odd, *TEN] if first else [*TEN, odd])))
    plain.write_text(json.dumps(collection(TEN)))
    (done,) = import_files([path], "qupath", tmp_path / "run", ImportOptions(mpp=0.25))
    assert (done.n_nuclei, done.skipped) == (10, {reason: 1})
    scored = evaluate_paths(path, plain)
    assert (scored.scores[0].n_pred, scored.scores[0].pq) == (10, 1.0)
    assert [n for n in scored.notes if reason in n and n.startswith(str(path)) and n.endswith(": 1")]


CROSSED = polygon([[300, 300], [330, 330], [330, 300], [300, 330], [300, 300]])
KEPT: dict[str, tuple[object, int, dict[str, int]]] = {
    "an open ring": (collection([*TEN, feature(polygon(square(450)[:-1]))]), 11, {"open rings closed": 1}),
    "heights": (collection([feature(polygon([[x, y, 0.5] for x, y in square(30 + 40 * i)])) for i in range(10)]), 10, {}),
    "some heights": (collection([*TEN, feature(polygon([[442, 22, 1], [458, 22], [458, 38], [442, 22, 1]]))]), 11, {}),
    "text": (
        collection([feature(polygon([[str(x), str(y)] for x, y in square(30 + 40 * i)])) for i in range(10)]),
        10,
        {"numbers written as text": 10},
    ),
    "a list": (TEN, 10, {}),
    "one feature": (TEN[0], 1, {}),
    "a bare geometry": (polygon(square(30)), 1, {}),
    "bare geometries": ([polygon(square(30)), polygon(square(70))], 2, {}),
    "a collection of geometries": (
        {"type": "GeometryCollection", "geometries": [{**polygon(square(30 + 40 * i)), "cell": i} for i in range(10)]},
        10,
        {},
    ),
    "in a feature": (
        feature({"type": "GeometryCollection", "geometries": [polygon(square(30)), {"type": "Point", "coordinates": [1, 2]}]}),
        1,
        {},
    ),
    "collections in a list": ([collection(TEN[:4]), collection(TEN[4:])], 10, {}),
    "parts": (feature({"type": "MultiPolygon", "coordinates": [[square(30)], [square(70)]]}), 2, {}),
    "a hole": (collection([*TEN, feature(polygon(square(300, 300, 20), square(300, 300, 5)))]), 11, {}),
    "crossing itself": (collection([*TEN, feature(CROSSED)]), 11, {}),
    "annotations alone": (collection([feature(polygon(square(30 + 40 * i)), "annotation") for i in range(10)]), 10, {}),
    "tiles alone": (collection([feature(polygon(square(30 + 40 * i)), "tile") for i in range(10)]), 10, {}),
    "given twice": (collection(TEN + TEN), 20, {}),
    "no properties": (collection([{"type": "Feature", "geometry": f["geometry"]} for f in TEN]), 10, {}),
    "null properties": (collection([{"type": "Feature", "geometry": f["geometry"], "properties": None} for f in TEN]), 10, {}),
    "old detections": (collection([old("Detection", polygon(square(30)))]), 1, {}),
    "features null": ({"type": "FeatureCollection", "features": None}, 0, {}),
}


@pytest.mark.parametrize("name", KEPT)
def test_every_shape_of_geojson_is_read_the_same_way_everywhere(tmp_path: Path, name: str) -> None:
    tree, n, mended = KEPT[name]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(tree))
    (done,) = import_files([path], "qupath", tmp_path / "run", ImportOptions(mpp=0.25, slide_id="S"))
    assert (done.n_nuclei, done.repaired) == (n, mended)
    assert evaluate_paths(path, path).scores[0].n_pred == n
    if name == "crossing itself":
        assert done.flags == {"INVALID": 1}
        assert any("cross themselves, filled by even-odd: 1" in note for note in evaluate_paths(path, path).notes)


def packed_forms() -> dict[str, bytes]:
    text = json.dumps(collection(TEN)).encode()
    lines = "\n".join(json.dumps(f) for f in TEN) + "\n"
    return {
        "misnamed_gz.geojson": gzip.compress(text),
        "plain.geojson.gz": text,
        "members.geojson.gz": gzip.compress(text[:100]) + gzip.compress(text[100:]),
        "bom.geojson": b"\xef\xbb\xbf" + text,
        "utf16.geojson": text.decode().encode("utf-16"),
        "utf16be.geojson": b"\xfe\xff" + text.decode().encode("utf-16-be"),
        "lines.geojson": lines.encode(),
        "lines.ndjson": lines.replace("\n", "\r\n").encode(),
        "sequence.geojsons": "".join(f"\x1e{json.dumps(f)}\n" for f in TEN).encode(),
        "comma.geojson": text[:-2] + b",],}",
        "last.geojson": json.dumps({"features": TEN, "crs": {"a": 1}, "type": "FeatureCollection"}).encode(),
        "pretty.json": json.dumps(collection(TEN), indent=3).encode(),
    }


@pytest.mark.parametrize("name", packed_forms())
def test_packing_and_encoding_are_recognized_by_the_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(packed_forms()[name])
    (done,) = import_files([path], "qupath", tmp_path / "run", ImportOptions(mpp=0.25, slide_id="S"))
    assert done.n_nuclei == 10
    assert done.repaired == ({"trailing commas": 2} if name == "comma.geojson" else {})
    assert np.count_nonzero(load_instances(path)) == 10 * 256
    meta = ArraySlide(np.zeros((60, 440, 3), np.uint8), mpp=8.0, slide_id="s").meta
    path.write_bytes(packed_forms()[name].replace(b"detection", b"annotation"))
    if "gz" not in name and "utf16" not in name:
        assert tissue_from_file(path, meta).mask.sum() == 10 * 256


@pytest.mark.parametrize(
    ("name", "slide_id"),
    [("a.json.snappy", "a"), ("b_seg.npy", "b"), ("c.npz", "c"), ("d.ndjson", "d"), ("e_cell_detection.geojson.gz", "e")],
)
def test_a_slide_is_named_after_its_file(name: str, slide_id: str) -> None:
    from wsiseg.export.imports import _stem

    assert _stem(name) == slide_id


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (collection([*TEN, feature(polygon([[0, 0], [float("nan"), 1], [1, 1], [0, 0]]))]), "feature 10.*finite"),
        (collection([*TEN, feature(polygon([[0, 0], ["x", 1], [1, 1], [0, 0]]))]), "feature 10.*numbers"),
        (collection([*TEN, {"type": "Feature", "geometry": {"type": "Circle"}}]), "feature 10.*Circle"),
        (collection([*TEN, "nucleus"]), "feature 10.*str"),
        ({"cells": [], "type_map": {}}, "feature 0.*cells"),
    ],
)
def test_only_what_cannot_be_understood_is_refused_with_its_place(tmp_path: Path, tree: object, says: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(tree))
    with pytest.raises(FormatError, match=says):
        import_files([path], "qupath", tmp_path / "run", ImportOptions(mpp=0.25))
    if "cells" not in says:
        with pytest.raises(FormatError, match=says):
            load_instances(path)


def test_other_packings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_bytes(bz2.compress(json.dumps(collection(TEN)).encode()))
    with pytest.raises(FormatError, match="bzip2"):
        load_instances(path)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"classification": "neoplastic", "type": "x"}, "neoplastic"),
        ({"classification": {"names": ["Tumor", "Positive"]}}, "Tumor: Positive"),
        ({"classification": {"classification": {"name": "Stroma"}}}, "Stroma"),
        ({"classification": {"name": {"name": "Inner"}}}, "Inner"),
        ({"type": "Epithelial", "prob": 0.9}, "Epithelial"),
        ({"label": 17, "class": 3}, "3"),
    ],
)
def test_classes_are_in_many_places(tmp_path: Path, said: dict, name: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(collection([{"type": "Feature", "geometry": polygon(square(30)), "properties": said}])))
    import_files([path], "qupath", tmp_path / "run", ImportOptions(mpp=0.25, slide_id="S"))
    table = pq.read_table(tmp_path / "run/nuclei/S.parquet")
    assert table["class_name"].to_pylist() == [name]
    assert table["center_prob"].to_pylist() == [230 if "prob" in said else None]


def test_parquet_without_geometries_of_nuclei(tmp_path: Path) -> None:
    shapes = [None, shapely.Point(1, 2), shapely.Polygon(), shapely.box(3, 3, 9, 9), shapely.LineString([(0, 0), (1, 1)])]
    shapes.append(shapely.GeometryCollection([shapely.box(20, 3, 29, 9), shapely.Point(0, 0)]))
    wkb = pa.array([None if s is None else shapely.to_wkb(s) for s in shapes], pa.binary())
    pq.write_table(pa.table({"geometry": wkb}), tmp_path / "a.parquet")
    got = load_instances(tmp_path / "a.parquet")
    assert np.bincount(got.ravel())[1:].tolist() == [36, 54]


# CellViT and HoVer-Net

NAMES = {"Background": 0, "Neoplastic": 1, "Inflammatory": 2, "Connective": 3}
META = {"base_magnification": 40, "base_mpp": 0.25}


def cells(n: int) -> list[dict]:
    return [{"centroid": [20 + 20 * (i % 200), 20 + 20 * (i // 200)], "type": 1 + i % 3,
             "contour": square(20 + 20 * (i % 200), 20 + 20 * (i // 200), 6)[:-1]} for i in range(n)]  # fmt: skip


def raw_snappy(data: bytes) -> bytes:
    return pa.Codec("snappy").compress(data, asbytes=True)


def framed_snappy(data: bytes) -> bytes:
    """The framing format: a mark, then chunks of a kind, a 3-byte size and a 4-byte checksum, packed (0) or not (1)."""
    out = b"\xff\x06\x00\x00sNaPpY"
    for k, at in enumerate(range(0, len(data), 5000)):
        body = b"\0\0\0\0" + (raw_snappy(data[at : at + 5000]) if k % 2 else data[at : at + 5000])
        out += bytes([1 - k % 2]) + len(body).to_bytes(3, "little") + body
    return out


WRITERS: dict[str, Callable[[dict], bytes]] = {
    "cells.json": lambda tree: json.dumps(tree).encode(),
    "sorted.json": lambda tree: json.dumps(tree, sort_keys=True).encode(),
    "misnamed.json": lambda tree: gzip.compress(json.dumps(tree).encode()),
    "cells.json.snappy": lambda tree: raw_snappy(json.dumps(tree).encode()),
    "framed.json.snappy": lambda tree: framed_snappy(json.dumps(tree).encode()),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("by_name", [True, False], ids=["name to number", "number to name"])
def test_cellvit_of_any_generation_keeps_its_names(tmp_path: Path, writer: str, by_name: bool) -> None:
    n = 17_000 if writer == "sorted.json" else 60  # more than a chunk, with the names after the cells
    type_map = NAMES if by_name else {str(v): k for k, v in NAMES.items()}
    tree = {"wsi_metadata": {**META, "base_mpp": "0.25"}, "type_map": type_map, "cells": cells(n)}
    path = tmp_path / writer
    path.write_bytes(WRITERS[writer](tree))
    (done,) = import_files([path], "cellvit", tmp_path / "run", ImportOptions(slide_id="S"))
    table = pq.read_table(tmp_path / "run/nuclei/S.parquet")
    assert done.n_nuclei == n
    at = np.rint((np.array(table["cy"]) - 20) / 20) * 200 + np.rint((np.array(table["cx"]) - 20) / 20)
    names = ["Neoplastic", "Inflammatory", "Connective"]
    assert table["class_name"].to_pylist() == [names[int(i) % 3] for i in at]
    (row,) = pq.read_table(tmp_path / "run/slides.parquet").to_pylist()
    assert row["mpp"] == 0.25
    if n < 100:  # OpenCV's contours run through pixel centers: 13 px squares
        assert np.bincount(load_instances(path).ravel())[1:].tolist() == [169] * n


def test_odd_contours_are_counted_and_lists_of_centers_named(tmp_path: Path) -> None:
    some = cells(8)
    for cell, contour in zip(some, ([], [[1, 1], [2, 2]], None, [[7.5, 7.5]] * 5), strict=False):
        cell["contour"] = contour
    some[4]["type"] = None
    (tmp_path / "a.json").write_text(json.dumps({"wsi_metadata": META, "type_map": NAMES, "cells": some}))
    (done,) = import_files([tmp_path / "a.json"], "cellvit", tmp_path / "run", ImportOptions(slide_id="S"))
    assert done.n_nuclei == 4
    assert sum(done.skipped.values()) == 4
    assert len(done.skipped) == 4
    assert "" in pq.read_table(tmp_path / "run/nuclei/S.parquet")["class_name"].to_pylist()
    for cell in some:
        del cell["contour"]
    (tmp_path / "b.json").write_text(json.dumps({"cells": some}))
    with pytest.raises(FormatError, match=r"none of its 8 cells .* has a contour: .*cells\.json"):
        import_files([tmp_path / "b.json"], "cellvit", tmp_path / "run", ImportOptions(mpp=0.25))


def test_hovernet(tmp_path: Path) -> None:
    path = tmp_path / "h.json"
    path.write_text(json.dumps({"mag": 40, "nuc": {str(i + 1): cell for i, cell in enumerate(cells(30))}}))
    (done,) = import_files([path], "hovernet", tmp_path / "run", ImportOptions(mpp=0.25, slide_id="S"))
    assert done.n_nuclei == 30
    assert any("40x" in note for note in done.notes)
    assert set(pq.read_table(tmp_path / "run/nuclei/S.parquet")["class_name"].to_pylist()) == {"1", "2", "3"}
    assert evaluate_paths(path, path).scores[0].n_pred == 30
    path.write_text(json.dumps({"mag": None, "nuc": {}}))
    (done,) = import_files([path], "hovernet", tmp_path / "empty", ImportOptions(mpp=0.25, slide_id="S"))
    assert done.n_nuclei == 0


# label images


def discs() -> np.ndarray:
    y, x = np.mgrid[:150, :200]
    out = np.zeros((150, 200), np.int32)
    for k, (cy, cx) in enumerate((cy, cx) for cy in (25, 75, 125) for cx in (25, 75, 125, 175)):
        out[(y - cy) ** 2 + (x - cx) ** 2 <= 100] = k + 1
    return out


D = discs()
NOISE = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
RGB = np.stack([D * 23 % 256, D * 23 // 256, D * 0], axis=2).astype(np.uint8)
LABELS: dict[str, Callable[[Path], object]] = {
    "int32.tif": lambda p: tifffile.imwrite(p, D),
    "bin01.png": lambda p: Image.fromarray((D > 0).astype(np.uint8)).save(p),
    "bin255.png": lambda p: Image.fromarray((D > 0).astype(np.uint8) * 255).save(p),
    "bit.png": lambda p: Image.fromarray(D > 0).save(p),
    "bin65535.tif": lambda p: tifffile.imwrite(p, (D > 0).astype(np.uint16) * 65535),
    "bin01.npy": lambda p: np.save(p, (D > 0).astype(np.int64)),
    "bool.npy": lambda p: np.save(p, D > 0),
    "bin7.npy": lambda p: np.save(p, (D > 0) * 7),
    "float.npy": lambda p: np.save(p, D.astype(np.float64)),
    "float01.tif": lambda p: tifffile.imwrite(p, (D > 0).astype(np.float32)),
    "wide.tif": lambda p: tifffile.imwrite(p, D.astype(np.int64) * 10**12),
    "volume.tif": lambda p: tifffile.imwrite(p, D[None]),
    "five.npy": lambda p: np.save(p, D[None, None, None]),
    "last.npy": lambda p: np.save(p, D[..., None]),
    "rgb.png": lambda p: Image.fromarray(RGB).save(p),
    "rgba.png": lambda p: Image.fromarray(np.dstack([RGB, np.full(D.shape, 255, np.uint8)])).save(p),
    "gray.png": lambda p: Image.fromarray(np.dstack([((D > 0) * 255).astype(np.uint8)] * 3)).save(p),
    "palette.png": lambda p: _palette(p),
    "a.npz": lambda p: np.savez_compressed(p, labels=D),
    "only.npz": lambda p: np.savez(p, arr_0=D),
    "csr.npz": lambda p: sparse.save_npz(p, sparse.csr_matrix(D)),
    "inst.mat": lambda p: savemat(p, {"inst_map": D.astype(np.float64), "type_map": D * 0 + 1.0}),
    "x_seg.npy": lambda p: np.save(p, {"masks": D.astype(np.uint16), "file": "x.png", "flows": [D * 0.5]}, allow_pickle=True),
    "f_seg.npy": lambda p: np.save(p, {"est": 3.0, "masks": np.asfortranarray(D)}, allow_pickle=True),
}


def _palette(path: Path) -> None:
    image = Image.new("P", D.shape[::-1])
    image.putdata(D.astype(np.uint8).ravel().tolist())
    image.putpalette([v for c in range(256) for v in (c, c * 37 % 256, c * 91 % 256)])
    image.save(path)


@pytest.mark.parametrize("name", LABELS)
def test_label_images_hold_twelve_nuclei(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    LABELS[name](path)
    got = load_instances(path)
    pairs = set(zip(D.ravel().tolist(), got.ravel().tolist(), strict=True))
    assert len(pairs) == 13  # one id each, and the background
    assert (0, 0) in pairs
    (done,) = import_files([path], "labels", tmp_path / "run", ImportOptions(mpp=0.25, slide_id="S"))
    assert done.n_nuclei == 12


def test_what_was_not_annotated_counts_for_neither_side(tmp_path: Path) -> None:
    truth = D.copy()
    truth[:40] = -1  # four nuclei, two of them would be missed
    pred = np.where((D == 1) | (D == 2), 0, D)
    pred[5:15, 100:110] = 99  # invented, where nobody looked
    np.save(tmp_path / "t.npy", truth)
    np.save(tmp_path / "p.npy", pred)
    scored = evaluate_paths(tmp_path / "p.npy", tmp_path / "t.npy")
    assert (scored.scores[0].n_truth, scored.scores[0].n_pred, scored.scores[0].pq) == (8, 8, 1.0)
    assert any("8,000 of 30,000 px" in note for note in scored.notes)
    again = evaluate_paths(tmp_path / "t.npy", tmp_path / "p.npy")
    assert (again.scores[0].n_truth, again.scores[0].pq) == (8, 1.0)
    (done,) = import_files([tmp_path / "t.npy"], "labels", tmp_path / "run", ImportOptions(mpp=0.25, slide_id="S"))
    assert done.n_nuclei == 8
    store = zarr.create_array(str(tmp_path / "t.zarr"), shape=truth.shape, dtype="i4", chunks=(64, 64))
    store[:] = truth
    (done,) = import_files([tmp_path / "t.zarr"], "labels", tmp_path / "run", ImportOptions(mpp=0.25, slide_id="Z"))
    assert done.n_nuclei == 8


def test_a_mask_in_zarr_is_taken_apart_in_windows(tmp_path: Path) -> None:
    store = zarr.create_array(str(tmp_path / "m.zarr"), shape=D.shape, dtype="u1", chunks=(64, 64))
    store[:] = (D > 0) * 255
    (done,) = import_files([tmp_path / "m.zarr"], "labels", tmp_path / "run", ImportOptions(mpp=0.25, slide_id="S"))
    areas = sorted(pq.read_table(tmp_path / "run/nuclei/S.parquet")["area_px"].to_pylist())
    assert areas == sorted(np.bincount(D.ravel())[1:].tolist())
    assert any("mask" in note for note in done.notes)


def test_a_map_of_classes_is_refused(tmp_path: Path) -> None:
    classes = np.where(D > 0, 1 + D % 3, 0)
    np.save(tmp_path / "c.npy", classes)
    with pytest.raises(FormatError, match=r"3 values form 12 separate parts.*--components"):
        import_files([tmp_path / "c.npy"], "labels", tmp_path / "run", ImportOptions(mpp=0.25))
    with pytest.raises(FormatError, match="--components"):
        load_instances(tmp_path / "c.npy")
    options = ImportOptions(mpp=0.25, components=True, slide_id="S")
    assert import_files([tmp_path / "c.npy"], "labels", tmp_path / "run", options)[0].n_nuclei == 12
    assert evaluate_paths(tmp_path / "c.npy", tmp_path / "c.npy", components=True).scores[0].n_truth == 12


def test_one_nucleus_in_two_pieces_keeps_its_id(tmp_path: Path) -> None:
    labels = np.zeros((40, 40), np.int32)
    labels[4:10, 4:10] = labels[4:10, 12:18] = 17
    np.save(tmp_path / "a.npy", labels)
    assert np.unique(load_instances(tmp_path / "a.npy")).tolist() == [0, 17]
    np.save(tmp_path / "b.npy", labels // 17)
    assert np.array_equal(load_instances(tmp_path / "b.npy"), split_components(labels))


def test_unsigned_minus_one_is_mentioned(tmp_path: Path) -> None:
    labels = D.astype(np.uint16)
    labels[:5] = 65535
    tifffile.imwrite(tmp_path / "a.tif", labels)
    assert any("65535" in note and "signed" in note for note in read_label_file(tmp_path / "a.tif").notes)


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("pages.tif", lambda p: tifffile.imwrite(p, np.stack([D, D])), "planes"),
        ("photo.png", lambda p: Image.fromarray(NOISE).save(p), "RGB"),
        ("two.npz", lambda p: np.savez(p, a=D, b=D), "2-D array"),
        ("list_seg.npy", lambda p: np.save(p, {"outlines": D}, allow_pickle=True), "without 'masks'"),
        ("float_seg.npy", lambda p: np.save(p, {"masks": D * 0.5}, allow_pickle=True), "integer masks"),
    ],
)
def test_what_holds_no_one_label_image_is_named(tmp_path: Path, name: str, write: Callable, says: str) -> None:
    write(tmp_path / name)
    with pytest.raises(FormatError, match=says) as caught:
        load_instances(tmp_path / name)
    assert name in str(caught.value)


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nothing_in_a_seg_file_is_run(tmp_path: Path, protocol: int) -> None:
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"
    content = np.array({"masks": D.astype(np.uint8), "evil": _Evil(tmp_path / "touched")}, object)
    (tmp_path / "e_seg.npy").write_bytes(header + pickle.dumps(content, protocol=protocol))
    if protocol == 5:  # NumPy then stores its arrays in another way, which Cellpose does not
        with pytest.raises(FormatError, match=r"e_seg\.npy"):
            load_instances(tmp_path / "e_seg.npy")
    else:
        assert np.array_equal(load_instances(tmp_path / "e_seg.npy"), D)
    assert not (tmp_path / "touched").exists()
