"""Hou et al.'s tables on three patches whose numbers are worked out by hand in the comments."""

import csv
import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

from wsiseg.cli import main
from wsiseg.errors import FormatError
from wsiseg.labels import write_labels
from wsiseg.metrics import hou_cells, hou_patches, hou_rows, hou_summary


def patch(*squares):
    """256 px patch with 10 x 10 px nuclei at (y, x)."""
    labels = np.zeros((256, 256), np.int32)
    for k, (y, x) in enumerate(squares, 1):
        labels[y : y + 10, x : x + 10] = k
    return labels


#          truth, prediction                               counts t, p   weight   Dice                   DICE_2
# one      2 nuclei, one found, one missed                 2, 1          3        2*100 / (200 + 100)    2*100 / (100 + 100)
# two      1 nucleus half covered, one invented            1, 2          3        2*50 / (100 + 200)     2*50 / (100 + 100)
# three    4 nuclei, all found                             4, 4          8        1                      1
FOUR = ((50, 50), (50, 90), (90, 50), (90, 90))
PATCHES = {
    "one": (patch((40, 40), (90, 90)), patch((40, 40))),
    "two": (patch((40, 40)), patch((40, 45), (150, 150))),
    "three": (patch(*FOUR), patch(*FOUR)),
}
FACTS = {"one": ("brca", "best"), "two": ("brca", "unacceptable"), "three": ("luad", "problematic")}
DICE = {"one": 2 / 3, "two": 1 / 3, "three": 1.0}
INSTANCE_DICE = {"one": 1.0, "two": 0.5, "three": 1.0}


def scored():
    return [p for name, (truth, pred) in PATCHES.items() for p in hou_patches(pred, truth, name, *FACTS[name])]


def test_each_patch_and_their_weighted_means():
    for p in scored():
        assert p.dice == pytest.approx(DICE[p.image])
        assert p.instance_dice == pytest.approx(INSTANCE_DICE[p.image])
    got = hou_summary(scored())
    assert got.n_patches == 3
    assert got.dice == pytest.approx((3 * 2 / 3 + 3 * 1 / 3 + 8) / 14)
    assert got.instance_dice == pytest.approx((3 * 1 + 3 * 0.5 + 8) / 14)
    # errors 1, 1, 0 over a mean true count of 7/3
    assert got.counts.mae_percent == pytest.approx(100 * (2 / 3) / (7 / 3))
    # deviations in thirds: truth -1 -4 5, prediction -4 -1 5, so r = (4 + 4 + 25) / (1 + 16 + 25)
    assert got.counts.pearson_r == pytest.approx(33 / 42)


def test_rows_are_those_of_tables_3_and_4():
    rows = {(r.table, r.row): r for r in hou_rows(scored(), {"B - A": [scored()[0]]})}
    assert list(rows) == [
        ("wsi group", "best"),
        ("wsi group", "problematic"),
        ("wsi group", "all acceptable"),
        ("wsi group", "unacceptable"),
        ("cancer type", "brca"),
        ("cancer type", "luad"),
        ("all", "all patches"),
        ("annotators", "B - A"),
    ]
    assert rows["wsi group", "all acceptable"].dice == pytest.approx((3 * 2 / 3 + 8) / 11)
    assert rows["cancer type", "brca"].instance_dice == pytest.approx((3 * 1 + 3 * 0.5) / 6)
    assert rows["cancer type", "brca"].pearson_r == pytest.approx(-1)  # counts 2, 1 against 1, 2
    assert rows["annotators", "B - A"].dice == pytest.approx(2 / 3)
    assert math.isnan(rows["wsi group", "best"].pearson_r)
    _, cells = hou_cells(list(rows.values()))
    assert cells[0] == ["wsi group", "best", "1", "0.667", "1.000", "-", "50.0"]


def test_unknown_groups_are_refused_and_empty_patches_only_count():
    with pytest.raises(FormatError, match="one: expected a WSI group of best"):
        hou_patches(patch(), patch(), "one", "brca", "excellent")
    blank = hou_patches(patch(), patch())
    assert hou_summary([*scored(), *blank]).dice == hou_summary(scored()).dice
    assert hou_summary([*scored(), *blank]).n_patches == 4
    assert math.isnan(hou_summary(blank).dice)
    assert hou_patches(np.zeros((255, 300), int), np.zeros((255, 300), int)) == []


def test_command_prints_the_tables_and_writes_them(tmp_path):
    folders = {name: tmp_path / name for name in ("pred", "truth", "second")}
    for folder in folders.values():
        folder.mkdir()
    for name, (truth, pred) in PATCHES.items():
        write_labels(folders["truth"] / f"{name}.png", truth)
        write_labels(folders["pred"] / f"{name}.png", pred)
    write_labels(folders["second"] / "one.png", PATCHES["one"][1])
    with (tmp_path / "groups.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "cancer_type", "wsi_group"], *([k, a, b.title()] for k, (a, b) in FACTS.items())])
    args = ["evaluate", "--protocol", "hou2020", str(folders["pred"]), str(folders["truth"])]
    args += ["--groups", str(tmp_path / "groups.csv"), "--annotator", str(folders["second"]), "--out", str(tmp_path / "o.json")]
    result = CliRunner().invoke(main, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "all acceptable" in result.output
    tree = json.loads((tmp_path / "o.json").read_text())
    rows = {(r["table"], r["row"]): r for r in tree["rows"]}
    assert rows["all", "all patches"]["dice"] == pytest.approx(11 / 14)
    assert rows["annotators", "second - truth"]["n_patches"] == 1
    assert rows["wsi group", "best"]["pearson_r"] is None
    assert len(tree["patches"]) == 3


def test_organs_of_the_set_serve_as_cancer_types(tmp_path):
    for name, (truth, _) in PATCHES.items():
        write_labels(tmp_path / f"{name}.labels.png", truth)
    (tmp_path / "INFO.json").write_text(json.dumps({"organ_per_image": {"one": "breast", "two": "lung"}}))
    args = ["evaluate", str(tmp_path), str(tmp_path), "--protocol", "hou2020", "--out", str(tmp_path / "o.json")]
    assert CliRunner().invoke(main, args, catch_exceptions=False).exit_code == 0
    rows = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert [r["row"] for r in rows] == ["breast", "lung", "all patches"]
    assert {r["dice"] for r in rows} == {1.0}
    (tmp_path / "groups.csv").write_text("picture,cancer\none,brca\n")
    failed = CliRunner().invoke(main, [*args[:3], "--protocol", "hou2020", "--groups", str(tmp_path / "groups.csv")])
    assert failed.exit_code == 2
    assert "expected columns image, cancer_type" in failed.output
