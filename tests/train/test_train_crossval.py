"""Folds keep groups together and score every image once; a stopped cross-validation continues."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsiseg.datasets import Sample, make_folds
from wsiseg.errors import ConfigError
from wsiseg.train.crossval import cross_validate


def sample(image_id: str, dataset: str, group: str, organ: str = "") -> Sample:
    return Sample(image_id, dataset, group, "", "", 0.25, validation=False, organ=organ)


FACTS = st.tuples(
    st.sampled_from("ab"), st.sampled_from([f"p{k}" for k in range(9)]), st.sampled_from(["liver", "lung", "skin"])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(FACTS, min_size=1, max_size=40), st.integers(2, 6), st.randoms(use_true_random=False))
def test_every_image_is_judged_once_and_no_patient_on_both_sides(
    facts: list[tuple[str, str, str]], folds: int, random: object
) -> None:
    samples = [sample(f"i{k}", dataset, group, organ) for k, (dataset, group, organ) in enumerate(facts)]
    owners = {(d, g) for d, g, _ in facts}
    for by, available in (("patient", len(owners)), ("organ", len({o for *_, o in facts}))):
        if folds > available:
            with pytest.raises(ConfigError, match=f"{available} {by}s"):
                make_folds(samples, by, folds)  # type: ignore[arg-type]
            continue
        made = make_folds(samples, by, folds)  # type: ignore[arg-type]
        shuffled = list(samples)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        assert made == make_folds(shuffled, by, folds)  # type: ignore[arg-type]
        assert len(made) == folds == len({f.name for f in made})
        judged = sorted(s.image_id for f in made for s in f.samples if s.validation)
        assert judged == sorted(s.image_id for s in samples)
        for fold in made:
            held, seen = ([s for s in fold.samples if s.validation is side] for side in (True, False))
            assert held
            assert not {(s.dataset, s.group) for s in held} & {(s.dataset, s.group) for s in seen}
            if by == "organ":
                assert not {s.organ for s in held} & {s.organ for s in seen}
            else:
                assert len(held) + len(seen) == len(samples)


def test_patients_are_spread_evenly_over_folds_in_every_set() -> None:
    samples = [sample(f"{d}{k}", d, f"g{k}") for d, n in (("a", 20), ("b", 10)) for k in range(n)]
    for fold in make_folds(samples, "patient", 5):
        assert [sum(s.validation and s.dataset == d for s in fold.samples) for d in "ab"] == [4, 2]


def test_a_tcga_patient_is_one_in_all_sets() -> None:
    samples = [sample("TCGA-AA-0001-01Z", "a", "AA-0001"), sample("x_TCGA-AA-0001", "b", "AA-0001"), sample("y", "b", "y")]
    for fold in make_folds(samples, "patient", 2):
        assert len({s.validation for s in fold.samples if s.group == "AA-0001"}) == 1


def test_organs_must_be_stated() -> None:
    with pytest.raises(ConfigError, match=r"\['b'\].*organ_per_image"):
        make_folds([sample("1", "a", "1", "liver"), sample("2", "b", "2")], "organ")


CONFIG = """
name = "small"
licence = "CC0"
out = "run"
data_root = "{root}"
net = "tiny"
patch_px = 64
[sets]
organs = 1.0
[loop]
steps = {steps}
batch = 2
warmup_steps = 2
report_every = 2
validate_every = 100
precision = "fp32"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "organs"
    folder.mkdir(parents=True)
    y, x = np.mgrid[:96, :96]
    organs = {"a": "liver", "b": "liver", "c": "skin", "d": "lung"}
    for k, name in enumerate(organs):
        labels = np.zeros((96, 96), np.uint16)
        for n in range(4):
            labels[np.hypot(x - 25 - 45 * (n % 2) - k, y - 25 - 45 * (n // 2)) <= 11] = n + 1
        rgb = np.where(labels[..., None] > 0, (80, 50, 130), (235, 190, 215)).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"{name}.png")
        Image.fromarray(labels).save(folder / f"{name}.labels.png")
    (folder / "INFO.json").write_text(json.dumps({"mpp": 0.25, "organ_per_image": organs}))
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(root=tmp_path / "data", steps=4))
    return path


def test_leave_one_organ_out_and_continue_where_it_stopped(config: Path) -> None:
    def stop_in_the_second_fold(line: dict[str, float]) -> None:
        lines.append(line)
        if len(lines) == 3:  # after the line and the checkpoint of step 2 of the second of three folds
            raise KeyboardInterrupt

    lines: list[dict[str, float]] = []
    with pytest.raises(KeyboardInterrupt):
        cross_validate(config, "organ", on_line=stop_in_the_second_fold)
    done = cross_validate(config, "organ", on_line=lines.append)
    assert [line["step"] for line in lines] == [2, 4, 2, 4, 2, 4], "what was done was not done again"
    assert [row.fold for row in done.rows] == ["liver", "lung", "skin"]
    assert [row.images for row in done.rows] == [2, 1, 1]
    assert [row.nuclei for row in done.rows] == [8, 4, 4]
    headings, rows = done.table()
    pq = [row.pq for row in done.rows]
    assert rows[-1][headings.index("pq")] == f"{np.mean(pq):.4f} ± {np.std(pq, ddof=1):.4f}"
    assert json.loads((done.folder / "table.json").read_text())["rows"] == rows
    plan = json.loads((done.folder / "folds.json").read_text())
    assert plan["folds"]["liver"] == ["organs/a", "organs/b"]
    card = json.loads((done.folder / "liver" / "weights" / "small.json").read_text())
    assert card["data"]["validation_images"] == ["a", "b"]
    again = cross_validate(config, "organ", on_line=lambda line: pytest.fail("nothing is left to train"))
    assert again == done
    config.write_text(config.read_text().replace("steps = 4", "steps = 6"))
    with pytest.raises(ConfigError, match="another config"):
        cross_validate(config, "organ")


def test_one_process_only(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun"):
        cross_validate(config, "organ")
