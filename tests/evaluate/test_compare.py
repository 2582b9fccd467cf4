"""Whole slides compared window by window: the numbers of ``evaluate`` where that can run, whatever the windows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from click.testing import CliRunner
from scipy import ndimage

from wsiseg.cli import main
from wsiseg.config import RunConfig, ScheduleConfig
from wsiseg.errors import FormatError, InputError
from wsiseg.evaluation import evaluate_paths
from wsiseg.evaluation.compare import compare_segmentations, run
from wsiseg.evaluation.compare.cells import Cells
from wsiseg.evaluation.compare.slide import read_cells
from wsiseg.export.imports import ImportOptions, import_files
from wsiseg.metrics import Scores, instance_scores

MPP = 0.5


def blobs(seed: int, shape: tuple[int, int] = (500, 700), level: float = 0.55) -> np.ndarray:
    """Touching blobs, as nuclei lie: label image."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.random(shape), 4)
    low, high = field.min(), field.max()
    return np.asarray(ndimage.label((field - low) / (high - low) > level)[0], np.int32)


def imported(folder: Path, labels: np.ndarray, name: str = "s", mpp: float = MPP) -> Path:
    """Make a run of a label image."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder.with_suffix(".npy"), labels)
    import_files([folder.with_suffix(".npy")], "labels", folder, ImportOptions(mpp=mpp, slide_id=name))
    return folder


def geojson(path: Path, shapes: list[shapely.Polygon], width: int, height: int, name: str = "s") -> Path:
    """Make a run of polygons, which may lie over each other."""
    features = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(s)} for s in shapes]
    file = path.with_suffix(".geojson")
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    import_files([file], "qupath", path, ImportOptions(mpp=MPP, slide_id=name, width_px=width, height_px=height, frame="slide"))
    return path


def assert_same(ours: Scores, theirs: Scores) -> None:
    for field in dataclasses.fields(Scores):
        np.testing.assert_allclose(getattr(ours, field.name), getattr(theirs, field.name), rtol=1e-12, err_msg=field.name)


def table(folder: Path, name: str = "s") -> Path:
    return folder / "nuclei" / f"{name}.parquet"


@pytest.mark.parametrize("window_px", [64, 200, 4096])
def test_equal_to_the_scores_of_the_label_images(window_px: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WINDOW_PX", window_px)
    monkeypatch.setattr(run, "PIECE_WINDOWS", 3)
    first = blobs(1)
    second = np.roll(first, (2, 1), (0, 1))  # the same nuclei drawn a little otherwise, some merged, some gone
    second[ndimage.binary_dilation(second == 5, iterations=3)] = 5
    second[second % 7 == 0] = 0
    a, b = imported(tmp_path / "a", first), imported(tmp_path / "b", second)
    found = compare_segmentations(a, b, tmp_path / "out", n_crops=0)
    assert found.ok
    filled_a, filled_b = (drawn(table(p), first.shape) for p in (a, b))
    assert_same(found.slides[0].scores, instance_scores(filled_a, filled_b))
    assert_same(found.slides[0].scores, evaluate_paths(table(a), table(b)).scores[0])
    assert 0.2 < found.slides[0].scores.pq < 0.95
    assert_same(found.pooled().scores, found.slides[0].scores)


def drawn(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Draw a table by shapely: the pixels whose center is inside, one polygon after the other."""
    shapes = shapely.from_wkb(pq.read_table(path)["geometry"].to_numpy(zero_copy_only=False))
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    out = np.zeros(shape, np.int32)
    for k in sorted(range(len(shapes)), key=lambda k: -shapes[k].area):
        x0, y0, x1, y1 = (int(v) for v in shapes[k].bounds)
        window = (slice(y0, y1 + 1), slice(x0, x1 + 1))
        out[window][shapely.contains_xy(shapes[k], x[window], y[window])] = k + 1
    return out


@pytest.mark.parametrize("window_px", [50, 4096])
def test_nuclei_given_twice_and_hidden_ones_count_as_in_evaluate(
    window_px: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "WINDOW_PX", window_px)
    rng = np.random.default_rng(3)
    shapes = [
        shapely.Point(*xy).buffer(r, 6) for xy, r in zip(rng.uniform(20, 280, (150, 2)), rng.uniform(3, 14, 150), strict=True)
    ]
    covering = [shapely.box(10, 10, 30, 30), shapely.box(10, 10, 20, 30), shapely.box(20, 10, 30, 30)]
    a = geojson(tmp_path / "a", [*shapes, *shapes[:20], *covering, shapely.box(5.1, 5.1, 5.3, 5.3)], 320, 320)
    b = geojson(tmp_path / "b", [*shapes[10:120], *shapes[30:40], *covering[:1]], 320, 320)
    found = compare_segmentations(a, b, tmp_path / "out", n_crops=0)
    theirs = evaluate_paths(table(a), table(b)).scores[0]
    assert theirs.n_pred == 173, "the one without a pixel center is in neither"
    assert_same(found.slides[0].scores, theirs)
    assert "1 of 174 nuclei of A contain no pixel center" in found.slides[0].notes[0]


def test_map_and_worst_places_count_every_nucleus_once(tmp_path: Path) -> None:
    first = blobs(1)
    second = first.copy()
    second[:, 400:] = blobs(2)[:, 400:] + (blobs(2)[:, 400:] > 0) * 10_000
    a, b = imported(tmp_path / "a", first), imported(tmp_path / "b", second)
    out = tmp_path / "out"
    found = compare_segmentations(a, b, out, n_crops=2)
    scores = found.slides[0].scores
    cells = read_cells(out, "s")
    assert isinstance(cells, Cells)
    assert (cells.n_a.sum(), cells.n_b.sum(), cells.matched.sum()) == (scores.n_pred, scores.n_truth, scores.matched[0])
    assert cells.matched_iou.sum() == pytest.approx(scores.matched_iou[0])
    assert all(w.x_px + w.side_px > 400 for w in found.slides[0].worst[:3]), "left of it both are the same"
    rows = pq.read_table(out / "compare.parquet").to_pylist()
    messages = json.loads((out / "compare.json").read_text())
    assert rows[0]["pq"] == messages["slides"][0]["pq"] == pytest.approx(scores.pq)
    area = {k: pq.read_table(table(p))["area_um2"].to_numpy().mean() for k, p in (("a", a), ("b", b))}
    assert rows[0]["area_diff_frac"] == pytest.approx(area["a"] / area["b"] - 1, rel=1e-5)
    page = (out / "compare.html").read_text(encoding="utf-8")
    assert f"{scores.pq:.3f}" in page
    assert page.count("data:image/") == 2, "the map and the places"
    assert "http" not in page.replace("http-equiv", "")


def test_slides_of_one_side_and_those_that_do_not_fit_are_named_with_numbers(tmp_path: Path) -> None:
    labels = blobs(1, (200, 200))
    a, b = tmp_path / "a", tmp_path / "b"
    for name in ("good", "scaled", "alone"):
        imported(a, labels, name)
    imported(b, labels, "good")
    imported(b, labels, "scaled", mpp=0.25)
    imported(b, labels, "other")
    far = shapely.box(90_000, 90_000, 90_020, 90_020)
    geojson(a, [shapely.box(10, 10, 30, 30)], 100_000, 100_000, "far")
    geojson(b, [far], 100_000, 100_000, "far")
    found = compare_segmentations(a, b, tmp_path / "out", n_crops=0)
    assert not found.ok
    status = {s.slide_id: s.status for s in found.slides}
    assert status == {"good": "done", "scaled": "refused", "far": "refused"}
    reported = {s.slide_id: s.error for s in found.slides}
    assert "0.5 um/px" in reported["scaled"]
    assert "0.25" in reported["scaled"]
    assert "90020" in reported["far"]
    assert (found.only_a, found.only_b) == (("alone",), ("other",))
    assert found.pooled().scores.pq == 1.0
    result = CliRunner().invoke(main, ["compare", str(a), str(b), "-o", str(tmp_path / "out2"), "--crops", "0"])
    assert result.exit_code == 1
    assert "scaled: refused" in result.output
    assert "only in A, not compared: 1 slides (alone)" in result.output
    with pytest.raises(InputError, match="'nobody' is not in"):
        compare_segmentations(a, b, tmp_path / "out", slide_ids=("nobody",))
    with pytest.raises(FormatError, match="wsiseg import"):
        compare_segmentations(tmp_path, b, tmp_path / "out")


def test_the_same_command_continues_and_a_changed_table_is_compared_again(tmp_path: Path) -> None:
    labels = blobs(1, (200, 200))
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    for name in ("one", "two"):
        imported(a, labels, name)
        imported(b, labels, name)
    first = compare_segmentations(a, b, out, n_crops=0)
    (out / "slides/one.json").write_text("{cut")
    second = compare_segmentations(a, b, out, n_crops=0)
    assert (first.reused, second.reused) == (0, 1)
    assert [s.row() for s in second.slides] == [s.row() for s in first.slides]
    labels[labels == labels.max()] = 0
    pq.write_table(pq.read_table(table(b, "two")).slice(1), table(b, "two"))
    third = compare_segmentations(a, b, out, n_crops=0)
    assert third.reused == 1
    assert third.slides[1].scores.n_truth == second.slides[1].scores.n_truth - 1


def test_workers_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = blobs(1)
    a, b = imported(tmp_path / "a", labels), imported(tmp_path / "b", np.roll(labels, 1, 0))
    alone = compare_segmentations(a, b, tmp_path / "alone", n_crops=0)
    monkeypatch.setattr(run, "FEW_NUCLEI", 0)
    monkeypatch.setattr(run, "PIECE_WINDOWS", 1)
    monkeypatch.setattr(run, "WINDOW_PX", 256)
    many = compare_segmentations(a, b, tmp_path / "many", RunConfig(schedule=ScheduleConfig(workers=2)), n_crops=0)
    assert_same(alone.slides[0].scores, many.slides[0].scores)


def test_empty_sides(tmp_path: Path) -> None:
    a, b = imported(tmp_path / "a", blobs(1, (200, 200))), imported(tmp_path / "b", blobs(1, (200, 200)))
    pq.write_table(pq.read_table(table(b)).slice(0, 0), table(b))
    found = compare_segmentations(a, b, tmp_path / "out", n_crops=1)
    assert found.slides[0].row().pq == 0.0
    assert found.slides[0].row().n_b == 0
    pq.write_table(pq.read_table(table(a)).slice(0, 0), table(a))
    both = compare_segmentations(a, b, tmp_path / "out", n_crops=1)
    assert both.slides[0].status == "empty"
    assert both.ok


def test_evaluate_of_what_is_too_large_names_compare_and_allocates_nothing(tmp_path: Path) -> None:
    a = geojson(tmp_path / "a", [shapely.box(10, 10, 30, 30), shapely.box(65_000, 46_000, 65_270, 46_070)], 65_280, 46_080)
    import tracemalloc

    tracemalloc.start()
    result = CliRunner().invoke(main, ["evaluate", str(table(a)), str(table(a))])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.exit_code == 2
    assert "65,270 x 46,070 px" in result.output
    assert "wsiseg compare" in result.output
    assert peak < 50e6
    found = compare_segmentations(a, a, tmp_path / "out", n_crops=1)
    assert found.slides[0].scores.pq == 1.0
