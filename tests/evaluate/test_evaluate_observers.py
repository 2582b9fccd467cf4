"""Agreement of observers on drawings whose overlaps are known: squares of 100 px, shifted by a known number of px."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from wsiseg.cli import main
from wsiseg.errors import FormatError
from wsiseg.evaluation import Reading, compare_observers, observer_cells, observer_rows, observer_tests
from wsiseg.labels import write_labels

PLACES = ((10, 10), (10, 40), (40, 10))


def drawing(shift=0, places=PLACES):
    labels = np.zeros((64, 64), np.int32)
    for k, (y, x) in enumerate(places, 1):
        labels[y : y + 10, x + shift : x + shift + 10] = k
    return labels


# A square shifted by s px shares 100 - 10 s px with itself: Dice 1 - s / 10, IoU (100 - 10 s) / (100 + 10 s) = AJI = PQ.
SHIFTS = {"Human_Liver_01": 0, "Human_Liver_02": 2, "Human_Skin_01": 1}
ANNA = {image: drawing() for image in SHIFTS}
BEN = {image: drawing(s) for image, s in SHIFTS.items()}


def jaccard(shift):
    return (100 - 10 * shift) / (100 + 10 * shift)


def readings():
    return [Reading("anna", "anna", ANNA), Reading("ben", "ben", BEN), Reading("anna", "anna (2)", ANNA)]


def test_pairs_are_inter_or_intra_and_score_per_organ():
    pairs = compare_observers(readings(), {i: i.split("_")[1] for i in SHIFTS})
    assert [(p.name, p.kind) for p in pairs] == [
        ("anna - ben", "inter"),
        ("anna - anna (2)", "intra"),
        ("ben - anna (2)", "inter"),
    ]
    rows = {r.organ: r for r in observer_rows(pairs[0])}
    assert list(rows) == ["Liver", "Skin", "all"]
    liver = [1.0, jaccard(2)]
    assert rows["Liver"].pq_mean == pytest.approx(sum(liver) / 2)
    assert rows["Liver"].aji_mean == pytest.approx(sum(liver) / 2)
    assert rows["Liver"].pq_sd == pytest.approx(abs(liver[0] - liver[1]) / 2**0.5)
    assert rows["Liver"].dice_mean == pytest.approx((1.0 + 0.8) / 2)
    assert rows["Skin"].dice_mean == pytest.approx(0.9)
    assert np.isnan(rows["Skin"].pq_sd)
    assert rows["all"].dice_mean == pytest.approx((1.0 + 0.8 + 0.9) / 3)
    assert (rows["all"].n_first, rows["all"].n_images) == (9, 3)
    assert {r.pq_mean for r in observer_rows(pairs[1])} == {1.0}
    _, cells = observer_cells(pairs)
    assert cells[1][:3] == ["anna - ben", "inter", "Skin"]
    assert cells[1][5] == "90.0"


def test_pairs_are_tested_on_shared_images():
    shifts = dict(zip("abcdefgh", [1, 1, 2, 2, 3, 1, 2, 3], strict=True))
    truth = {i: drawing() for i in shifts}
    again = {i: drawing(s) for i, s in shifts.items()}
    pairs = compare_observers([Reading("t", "t", truth), Reading("m", "m", again), Reading("t", "t2", truth)])
    tests = {(t.score, t.first, t.second): t.test for t in observer_tests(pairs)}
    assert len(tests) == 9  # three scores, three pairs of pairs
    got = tests["dice", "t - m (inter)", "t - t2 (intra)"]
    assert got.n == 8
    assert got.mean_difference == pytest.approx(-np.mean([s / 10 for s in shifts.values()]))
    assert got.p_value < 0.02  # all eight differences on one side: 2 / 2^8, more for the ties


def test_readings_that_cannot_be_compared_say_so():
    with pytest.raises(FormatError, match="two or more readings"):
        compare_observers(readings()[:1])
    with pytest.raises(FormatError, match="no image in common"):
        compare_observers([readings()[0], Reading("c", "c", {"other": drawing()})])
    with pytest.raises(FormatError, match=r"Human_Liver_01, anna - c: .*same"):
        compare_observers([readings()[0], Reading("c", "c", {"Human_Liver_01": np.zeros((9, 9), int)})])


def write_rois(path, shift):
    roifile = pytest.importorskip("roifile")
    for k, (y, x) in enumerate(PLACES):
        corners = np.array([(x + shift, y), (x + shift + 10, y), (x + shift + 10, y + 10), (x + shift, y + 10)])
        roifile.ImagejRoi.frompoints(corners, name=f"n{k}").tofile(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_command_reads_label_images_and_roi_sets(tmp_path, zipped):
    for image, labels in ANNA.items():
        (tmp_path / "a").mkdir(exist_ok=True)
        write_labels(tmp_path / "a" / f"{image}.labels.png", labels)
    (tmp_path / "b").mkdir()
    for image, shift in SHIFTS.items():
        if zipped:
            write_rois(tmp_path / "b" / f"{image}.zip", shift)
        else:
            folder = tmp_path / "b" / f"{image}_roiset"
            folder.mkdir()
            roifile = pytest.importorskip("roifile")
            for k, (y, x) in enumerate(PLACES):
                left, right = x + shift, x + shift + 10
                box = np.array([(left, y), (right, y), (right, y + 10), (left, y + 10)])
                roifile.ImagejRoi.frompoints(box).tofile(folder / f"{k}.roi")
    args = ["evaluate", "observers", f"anna={tmp_path / 'a'}", f"ben={tmp_path / 'b'}", f"anna={tmp_path / 'a'}"]
    result = CliRunner().invoke(main, [*args, "--out", str(tmp_path / "o.json")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "Wilcoxon" in result.output
    rows = {(r["pair"], r["organ"]): r for r in json.loads((tmp_path / "o.json").read_text())["rows"]}
    assert rows["anna - ben", "Liver"]["pq_mean"] == pytest.approx((1 + jaccard(2)) / 2)
    assert rows["anna - anna (2)", "all"]["dice_mean"] == 1.0
    assert rows["anna - anna (2)", "all"]["kind"] == "intra"


def test_outlines_alone_need_the_pictures(tmp_path):
    pil = pytest.importorskip("PIL.Image")
    for name in ("a", "b", "pictures"):
        (tmp_path / name).mkdir()
    write_rois(tmp_path / "a" / "x.zip", 0)
    write_rois(tmp_path / "b" / "x.zip", 1)
    args = ["evaluate", "observers", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "o.json")]
    failed = CliRunner().invoke(main, args)
    assert failed.exit_code == 2
    assert "--images FOLDER" in failed.output
    pil.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "pictures" / "x.png")
    with (tmp_path / "organs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "organ"], ["x", "thymus"]])
    args += ["--images", str(tmp_path / "pictures"), "--organs", str(tmp_path / "organs.csv")]
    assert CliRunner().invoke(main, args, catch_exceptions=False).exit_code == 0
    rows = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert [(r["organ"], r["n_first"]) for r in rows] == [("thymus", 3), ("all", 3)]
    assert rows[0]["pq_mean"] == pytest.approx(jaccard(1))
    assert CliRunner().invoke(main, [*args[:2], str(tmp_path / "pictures")]).exit_code == 2
