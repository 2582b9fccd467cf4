"""Files of instances read back as label maps, against shapely, OpenCV and the real files of other tools."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsiseg.errors import FormatError
from wsiseg.evaluation import load_instances
from wsiseg.labels import compact_labels, rasterize_rings, read_labels, split_components, write_labels

shapely = pytest.importorskip("shapely")


def pixel_polygons(labels):
    """Each label as the shapely union of its pixel squares: rings on pixel edges, holes kept."""
    out = []
    for k in np.unique(labels[labels > 0]):
        y, x = np.nonzero(labels == k)
        out.append(shapely.unary_union(shapely.box(x, y, x + 1, y + 1)))
    return out


def blobs(seed, side=48, n=9, connected=True):
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:side, :side]
    labels = np.zeros((side, side), np.int32)
    for _ in range(n):
        cy, cx = rng.uniform(0, side, 2)
        r = rng.uniform(2, 9)
        noise = rng.normal(0, 12, (side, side))
        labels[((yy - cy) ** 2 + (xx - cx) ** 2 + noise <= r * r) & (labels == 0)] = labels.max() + 1
    if connected:
        from skimage.measure import label

        labels = label(labels, connectivity=1).astype(np.int32)
    return labels


@settings(max_examples=40, deadline=None)
@given(arrays(np.int32, (7, 9), elements=st.integers(0, 3)))
def test_pixel_edge_rings_come_back_exactly(labels):
    labels = compact_labels(labels)
    polygons = pixel_polygons(labels)
    rings, owner = shapely.get_rings(shapely.get_parts(polygons, return_index=True)[0], return_index=True)
    of_polygon = shapely.get_parts(polygons, return_index=True)[1] if polygons else np.zeros(0, int)
    xy, index = shapely.get_coordinates(rings, return_index=True)
    offsets = np.r_[0, np.cumsum(np.bincount(index, minlength=len(rings)))] if len(rings) else np.zeros(1, int)
    got = rasterize_rings(xy, offsets, labels.shape, ring_polygons=of_polygon[owner] if len(rings) else np.zeros(0, int))
    assert (got == labels).all()


@pytest.mark.parametrize("seed", range(5))
def test_free_polygons_hold_the_centers_that_shapely_finds_inside(seed):
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 17))
    radius = rng.uniform(5, 25, 17)
    xy = np.c_[30 + radius * np.cos(angle), 28 + radius * np.sin(angle)]
    got = rasterize_rings(xy, np.array([0, 17]), (56, 50))  # clipped at the right
    cx, cy = np.meshgrid(np.arange(50) + 0.5, np.arange(56) + 0.5)
    assert (got.astype(bool) == shapely.contains_xy(shapely.Polygon(xy), cx, cy)).all()


def test_open_rings_shared_edges_and_overlaps():
    square = np.array([[1, 1], [5, 1], [5, 5], [1, 5]])
    xy, offsets = np.vstack([square, square + 2]), np.array([0, 4, 8])
    last = rasterize_rings(xy, offsets, (8, 8))
    first = rasterize_rings(xy, offsets, (8, 8), overlap="first")
    assert ((last == 2).sum(), (last == 1).sum()) == (16, 12)
    assert ((first == 1).sum(), (first == 2).sum()) == (16, 12)
    halves = np.array([[0, 0], [2.5, 0], [2.5, 4], [0, 4], [2.5, 0], [5, 0], [5, 4], [2.5, 4]])
    got = rasterize_rings(halves, offsets, (4, 5), ids=np.array([7, 9]))
    assert sorted(np.unique(got)) == [7, 9]  # the shared edge runs through pixel centers: no gap
    assert rasterize_rings(np.zeros((0, 2)), np.array([0]), (3, 3)).sum() == 0


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".mat"])
def test_label_images_read_back(tmp_path, suffix):
    labels = blobs(1) * 300
    path = tmp_path / f"a{suffix}"
    if suffix in {".png", ".tif"}:
        assert write_labels(path, labels) == path
        assert list(tmp_path.iterdir()) == [path]
    elif suffix == ".npy":
        np.save(path, labels.astype(np.float64))
    else:
        from scipy.io import savemat

        savemat(path, {"inst_map": labels.astype(np.float64), "inst_type": np.ones((3, 1)), "type_map": labels * 0.0})
    got = load_instances(path)
    assert got.dtype == np.int32
    assert (got == labels).all()


def test_binary_masks_become_components(tmp_path):
    from PIL import Image

    mask = blobs(3) > 0
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "m.png")
    Image.fromarray(mask).save(tmp_path / "bit.png")
    from skimage.measure import label

    expected = label(mask, connectivity=2)
    for name in ("m.png", "bit.png"):
        assert (compact_labels(read_labels(tmp_path / name)) == expected).all()
    assert split_components(mask).max() == expected.max()


def test_ids_beyond_int32_are_renumbered(tmp_path):
    labels = np.array([[0, 2**40], [2**40 + 1, 0]])
    np.save(tmp_path / "a.npy", labels)
    assert read_labels(tmp_path / "a.npy").tolist() == [[0, 1], [2, 0]]
    with pytest.raises(FormatError, match="do not fit"):
        write_labels(tmp_path / "a.png", labels)
    with pytest.raises(FormatError, match=r"\.tif"):
        write_labels(tmp_path / "a.bmp", np.ones((2, 2), int))


def write_parquet(path, polygons):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"geometry": pa.array(shapely.to_wkb(polygons).tolist(), pa.binary())}), path)


def qupath(polygons):
    return {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "geometry": shapely.geometry.mapping(p), "properties": {"objectType": "detection"}}
            for p in polygons
        ],
    }


def test_parquet_and_geojson_hold_the_same_nuclei(tmp_path):
    labels = blobs(5)
    polygons = pixel_polygons(labels)
    write_parquet(tmp_path / "a.parquet", polygons)
    (tmp_path / "a.geojson").write_text(json.dumps(qupath(polygons)))
    (tmp_path / "b.geojson.gz").write_bytes(gzip.compress(json.dumps(qupath(polygons)["features"]).encode()))
    one_class = [{"type": "Feature", "geometry": shapely.geometry.mapping(shapely.MultiPolygon(polygons)), "properties": {}}]
    (tmp_path / "cellvit.json").write_text(json.dumps(one_class))
    for name in ("a.parquet", "a.geojson", "b.geojson.gz", "cellvit.json"):
        assert (load_instances(tmp_path / name, labels.shape) == labels).all()
    window = load_instances(tmp_path / "a.parquet", (20, 16), origin=(11, 7))
    assert (window == labels[7:27, 11:27]).all()
    doubled = load_instances(tmp_path / "a.parquet", (96, 96), scale=2.0)
    assert (doubled == labels.repeat(2, 0).repeat(2, 1)).all()
    tight = load_instances(tmp_path / "a.parquet")
    assert (tight == labels[: tight.shape[0], : tight.shape[1]]).all()


def test_our_own_polygons_come_back_as_the_nuclei_that_were_traced(tmp_path):
    """The whole way: label map -> traced rings -> WKB -> Parquet -> label map."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from wsiseg.tables import wkb_polygons
    from wsiseg.types import Box, Instances
    from wsiseg.vectorize import vectorize

    ndimage = pytest.importorskip("scipy.ndimage")
    labels = blobs(8, side=120, n=40)
    for k in range(1, labels.max() + 1):  # polygons have no holes: neither has the truth
        labels[ndimage.binary_fill_holes(labels == k)] = k
    labels = blobs_in_raster_order(labels)
    first = np.unique(labels, return_index=True)[1][1:]
    anchors = np.c_[first % 120, first // 120].astype(np.int32)
    box = Box(0, 0, 120, 120)
    batch = vectorize(Instances(labels, anchors), np.zeros((2, 120, 120), np.uint8), box, box)
    geometry = wkb_polygons(batch.xy.astype(np.float64), batch.ring_offsets)
    pq.write_table(pa.table({"geometry": geometry}), tmp_path / "slide.parquet")
    got = load_instances(tmp_path / "slide.parquet", (120, 120))
    assert len(batch) == labels.max() > 20
    assert (got == labels).all()


def blobs_in_raster_order(labels):
    from skimage.measure import label

    return label(labels, connectivity=1).astype(np.int32)


def test_a_nucleus_in_the_filled_hole_of_another_keeps_its_pixels(tmp_path):
    outer, inner = shapely.box(0, 0, 10, 10), shapely.box(3, 3, 6, 6)
    for name, order in (("a", [outer, inner]), ("b", [inner, outer])):
        write_parquet(tmp_path / f"{name}.parquet", order)
        areas = np.bincount(load_instances(tmp_path / f"{name}.parquet").ravel())[1:]
        assert sorted(areas) == [9, 91]
        assert areas[order.index(inner)] == 9


def test_qupath_cells_give_their_nuclei(tmp_path):
    outer, inner = shapely.box(0, 0, 10, 10), shapely.box(3, 3, 6, 6)
    tree = qupath([outer])
    tree["features"][0]["nucleusGeometry"] = shapely.geometry.mapping(inner)
    (tmp_path / "a.geojson").write_text(json.dumps(tree))
    assert (load_instances(tmp_path / "a.geojson", (10, 10)) > 0).sum() == 9


def quip_csv(path, labels, scale=1.0, shift=(0, 0)):
    """Contours through pixel centers, as the QuIP pipeline writes them: OpenCV, open ring, one decimal."""
    cv2 = pytest.importorskip("cv2")
    lines = ["AreaInPixels,PhysicalSize,Polygon"]
    for k in range(1, labels.max() + 1):
        mask = (labels == k).astype(np.uint8)
        contour = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0][0][:, 0, :]
        numbers = ":".join(f"{v:.1f}" for v in (contour / scale + np.array(shift)).ravel())
        lines.append(f"{mask.sum()},{mask.sum()},[{numbers}]")
    path.write_text("\n".join(lines) + "\n")


def disc(seed):
    """One connected blob of noisy outline."""
    return next(b for n in range(99) if np.bincount(np.append((b := blobs(seed + 100 * n, 28, 1)).ravel(), 1))[1] > 6)


@pytest.mark.parametrize("seed", range(4))
def test_quip_contours_come_back_exactly(tmp_path, seed):
    ndimage = pytest.importorskip("scipy.ndimage")
    labels = np.zeros((60, 60), np.int32)
    for k, part in enumerate([disc(seed + 10), disc(seed + 30)], 1):
        y = 2 if k == 1 else 31
        assert (part == 1).sum() > 5  # an outline of one or two points is no polygon
        labels[y : y + 28, y : y + 28][ndimage.binary_fill_holes(part == 1)] = k
    quip_csv(tmp_path / "0_0_60_60_0.25_1-features.csv", labels)
    assert (load_instances(tmp_path / "0_0_60_60_0.25_1-features.csv", labels.shape) == labels).all()
    assert (load_instances(tmp_path, labels.shape) == labels).all()  # the folder of a slide


def test_quip_parts_of_a_slide_join(tmp_path):
    square = np.zeros((20, 20), np.int32)
    square[4:9, 5:11] = 1
    quip_csv(tmp_path / "1_1_20_20_0.25_1-features.csv", square)
    quip_csv(tmp_path / "21_1_20_20_0.25_1-features.csv", square, shift=(20, 0))
    got = load_instances(tmp_path, (20, 40))
    assert (got == np.hstack([square, 2 * square])).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.geojson",
            b'{"type": "FeatureCollection", "features": [{"geometry": {"type": "Point"}}]}',
            "points and lines have no area",
        ),
        ("a.geojson", b'[{"geometry": {"type": "LineString"}}]', "type LineString"),
        ("a.geojson", b'[{"geometry": {"type": "Polygon", "coordinates": [[[1], [2]]]}}]', "broken coordinates"),
        ("a.geojson", b"[3]", "expected an object"),
        ("a.geojson", b"nonsense", "expected JSON"),
        ("a.geojson.gz", b"nonsense", "expected JSON"),
        ("a.json", b"3", "expected JSON"),
        ("a.json", b'{"a": 3}', "FeatureCollection"),
        ("a.csv", b"x,y\n1,2\n", "no column 'Polygon'"),
        ("a.csv", b"Polygon\n[1:2:3]\n", "line 2"),
        ("a.csv", b"Polygon\n[a:b]\n", "QuIP"),
        ("a.parquet", b"nonsense", "Parquet"),
        ("a.npy", b"nonsense", "label image"),
        ("a.png", b"nonsense", "label image"),
        ("a.mat", b"nonsense", "label image"),
        ("a.tif", b"nonsense", "label image"),
        ("a.txt", b"nonsense", "unknown format"),
    ],
)
def test_broken_files_say_what_is_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        load_instances(tmp_path / name)
    assert name in str(caught.value)


def test_wrong_arrays_say_what_is_wrong(tmp_path):
    np.save(tmp_path / "rgb.npy", np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    np.save(tmp_path / "half.npy", np.full((4, 4), 0.5))
    np.save(tmp_path / "small.npy", np.zeros((4, 4), int))
    with pytest.raises(FormatError, match="RGB picture"):
        load_instances(tmp_path / "rgb.npy")
    with pytest.raises(FormatError, match="fractions"):
        load_instances(tmp_path / "half.npy")
    with pytest.raises(FormatError, match="expected 9 x 8 px"):
        load_instances(tmp_path / "small.npy", (8, 9))
    with pytest.raises(FormatError, match="does not exist"):
        load_instances(tmp_path / "none.png")
    with pytest.raises(FormatError, match="does not exist"):
        load_instances(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=r"features\.csv"):
        load_instances(tmp_path / "empty")


@pytest.mark.skipif("WSISEG_DATA" not in os.environ, reason="needs the given data sets")
def test_real_qupath_annotations():
    for path in sorted((Path(os.environ["WSISEG_DATA"]) / "formats" / "puma_geojson").glob("*.geojson")):
        labels = load_instances(path)
        shapes = [shapely.geometry.shape(f["geometry"]) for f in json.loads(path.read_text())["features"]]
        area = sum(s.area for s in shapes)
        assert labels.max() == len(shapely.get_parts(shapes))
        assert abs((labels > 0).sum() / area - 1) < 0.03  # overlaps and rounding only
    points = next((Path(os.environ["WSISEG_DATA"]) / "formats").glob("cellvitpp_*.geojson"))
    with pytest.raises(FormatError, match="points and lines have no area"):
        load_instances(points)


@settings(max_examples=40, deadline=None)
@given(arrays(np.int32, (7, 9), elements=st.integers(0, 2)))
def test_parts_of_equal_value_are_counted(labels):
    from skimage.measure import label

    from wsiseg.labels import id_parts

    assert id_parts(labels) == sum(label(labels == k, connectivity=2).max() for k in (1, 2))
