"""Data: the unified layout, and splits that never tear a patient apart."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from wsiseg.datasets import VALIDATION_GROUPS, group_of, list_samples, load_sample, sets_folder
from wsiseg.datasets.samples import magnification
from wsiseg.errors import FormatError
from wsiseg.evaluation.scoring import annotated_sets
from wsiseg.train import Batch, ImageSteps, PatchSource, TargetOptions


def write_set(root: Path, name: str, ids: list[str], info: dict[str, object] | None = None, radius: int = 6) -> None:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "INFO.json").write_text(json.dumps({"mpp": "0.25 nominal", **(info or {})}))
    y, x = np.mgrid[:80, :96]
    for k, image_id in enumerate(ids):
        labels = np.zeros((80, 96), np.uint16)
        for n, (cx, cy) in enumerate(((20, 20), (60, 30), (40, 60)), 1):
            labels[np.hypot(x - cx - k, y - cy) <= radius] = 10 * n
        rgb = np.full((80, 96, 3), (230, 200, 220), np.uint8)
        rgb[labels > 0] = (90, 60, 130)
        Image.fromarray(rgb).save(folder / f"{image_id}.png")
        Image.fromarray(labels).save(folder / f"{image_id}.labels.png")


def test_listing_is_sorted_and_split_by_patient(tmp_path: Path) -> None:
    write_set(tmp_path, "tnbc", ["tnbc_03_2", "tnbc_01_1", "tnbc_03_1", "tnbc_02_9"])
    samples = list_samples(tmp_path, ("tnbc",))
    assert [s.image_id for s in samples] == ["tnbc_01_1", "tnbc_02_9", "tnbc_03_1", "tnbc_03_2"]
    assert [s.validation for s in samples] == [False, False, True, True]
    assert {s.mpp for s in samples} == {0.25}


@pytest.mark.parametrize(
    ("dataset", "image_id", "group"),
    [
        ("monuseg", "TCGA-AY-A8YK-01A-01-TS1", "AY-A8YK"),
        ("tnbc", "tnbc_07_3", "07"),
        ("consep", "consep_train_17", "17"),
        ("dsb2018_he", "dsb_00ae65c1c663", "00ae65c1c663"),
    ],
)
def test_groups_are_read_from_ids(dataset: str, image_id: str, group: str) -> None:
    assert group_of(dataset, image_id) == group


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"INFO\.json"):
        list_samples(tmp_path, ("none",))
    write_set(tmp_path, "a", ["a_1"])
    (tmp_path / "a" / "a_1.png").unlink()
    with pytest.raises(FormatError, match=r"a_1\.png"):
        list_samples(tmp_path, ("a",))
    write_set(tmp_path, "b", ["b_1"])
    Image.new("RGB", (5, 5)).save(tmp_path / "b" / "b_1.png")
    with pytest.raises(FormatError, match="height, width"):
        load_sample(list_samples(tmp_path, ("b",))[0])


def test_unknown_mpp_is_estimated_from_the_annotated_nuclei(tmp_path: Path) -> None:
    write_set(tmp_path, "u", ["u_1"], {"mpp": "unknown (mixed)"}, radius=8)
    sample = list_samples(tmp_path, ("u",))[0]
    _, labels = load_sample(sample)
    diameter = 2 * np.sqrt((labels == 10).sum() / np.pi)
    assert sample.mpp is None
    assert magnification(sample, labels) == pytest.approx(26 / diameter)


@pytest.mark.parametrize(
    ("stated", "mpp"),
    [
        ("0.2456-0.2527 (from XML)", 0.24915), ("0.25 - 0.26", 0.255), ("0.25-0.5", None), ("0.5-0.25", None), ("0.25-", None),
        ("0.25 nominal", 0.25), ("unknown (mixed)", None),
    ],
)  # fmt: skip
def test_a_narrow_range_of_mpp_is_its_middle(tmp_path: Path, stated: str, mpp: float | None) -> None:
    write_set(tmp_path, "u", ["u_1", "u_2"], {"mpp": stated, "mpp_per_image": {"u_2": "0.31"}})
    assert [s.mpp for s in list_samples(tmp_path, ("u",))] == [mpp and pytest.approx(mpp), 0.31]


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_only_images_of_unknown_scale_are_magnified_further(tmp_path: Path, device: torch.device | None) -> None:
    """All else is switched off: whole nuclei in the patches keep their area, unless the scale of their image is unknown."""
    from wsiseg.train import AugmentConfig

    write_set(tmp_path, "k", ["k_1"], {"mpp": 0.25})
    write_set(tmp_path, "u", ["u_1"], {"mpp": "unknown (mixed)"})
    off = {name: 0.0 for name in AugmentConfig.__slots__ if name not in ("scale_min", "scale_max", "unknown_scale")}
    config = AugmentConfig(**off, scale_min=1.0, scale_max=1.0, unknown_scale=1.5)

    def areas(dataset: str, augment: AugmentConfig) -> np.ndarray:
        """Return the areas of nuclei that the patches hold whole, px."""
        samples = list_samples(tmp_path, (dataset,))
        source = PatchSource(samples, {dataset: 1.0}, TargetOptions("ellipse"), augment, 64, batched_on=device)
        found = []
        for step in range(12):
            for material in source.batch(4, 3, step).target[:, 1].numpy():
                labels, _ = ndimage.label(material > 0.5)
                edge = set(np.concatenate([labels[[0, -1]].ravel(), labels[:, [0, -1]].ravel()]).tolist())
                found += [n for k, n in enumerate(np.bincount(labels.ravel())) if k and k not in edge]
        return np.array(found)

    known, plain = areas("k", config), areas("u", dataclasses.replace(config, unknown_scale=1.0))
    assert np.ptp(known) < 0.1 * known.mean()
    assert np.ptp(plain) < 0.1 * plain.mean()
    ratio = areas("u", config) / plain.mean()
    assert 0.9 / 1.5**2 < ratio.min() < 0.7
    assert 1.4 < ratio.max() < 1.1 * 1.5**2


def test_a_batch_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    write_set(tmp_path, "a", ["a_1", "a_2", "a_3"])
    from wsiseg.train import AugmentConfig

    source = PatchSource(list_samples(tmp_path, ("a",)), {"a": 1.0}, TargetOptions("ellipse"), AugmentConfig(), 64)
    first, again, other = source.batch(3, 5, 7), source.batch(3, 5, 7), source.batch(3, 5, 8)
    assert first.rgb.equal(again.rgb)
    assert first.target.equal(again.target)
    assert not first.rgb.equal(other.rgb)
    assert first.rgb.shape == (3, 3, 64, 64)
    assert first.rgb.abs().max() <= 1
    assert 0 <= first.target.min() <= first.target.max() <= 1 + 1e-6
    assert first.weight.min() >= 1


def test_a_teacher_draws_targets_towards_what_it_sees(tmp_path: Path) -> None:
    """A teacher that sees 200 everywhere, by a quarter: targets move by a quarter of what is between; weights do not."""
    write_set(tmp_path, "a", ["a_1", "a_2"])

    def batch(**options: Any) -> Batch:
        samples, steps = list_samples(tmp_path, ("a",)), ImageSteps(**options)
        return PatchSource(samples, {"a": 1.0}, TargetOptions("ellipse"), None, 48, steps=steps).batch(3, 5, 7)

    alone = batch()
    taught = batch(teacher=lambda rgb, _magnify: np.full((2, *rgb.shape[:2]), 200, np.uint8), teacher_share=0.25)
    inside = (alone.rgb != 1).any(1, keepdim=True).expand_as(alone.target)
    expected = alone.target + 0.25 * (200 / 255 - alone.target)
    assert alone.target[inside].std() > 0.1
    np.testing.assert_allclose(taught.target[inside], expected[inside], atol=1 / 255)
    assert taught.rgb.equal(alone.rgb)
    assert taught.weight.equal(alone.weight)


@pytest.mark.skipif("WSISEG_DATA" not in os.environ, reason="needs WSISEG_DATA")
def test_no_patient_is_on_both_sides() -> None:
    samples = list_samples(os.environ["WSISEG_DATA"], tuple(VALIDATION_GROUPS))
    for dataset in VALIDATION_GROUPS:
        mine = [s for s in samples if s.dataset == dataset]
        held_out = {s.group for s in mine if s.validation}
        assert held_out == VALIDATION_GROUPS[dataset]
        assert not held_out & {s.group for s in mine if not s.validation}
        assert 0.1 < np.mean([s.validation for s in mine]) < 0.35


def test_sets_are_found_beside_other_data(tmp_path: Path) -> None:
    """WSISEG_DATA names the folder that holds nuclei/, slides/ and so on, or the folder of sets itself."""
    (tmp_path / "nuclei").mkdir()
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "INFO.json").write_text("{}")
    write_set(tmp_path / "nuclei", "a", ["a_1", "a_2"])
    assert sets_folder(tmp_path) == sets_folder(tmp_path / "nuclei") == tmp_path / "nuclei"
    assert list_samples(tmp_path, ("a",)) == list_samples(tmp_path / "nuclei", ("a",))
    assert annotated_sets(tmp_path) == ["a"]
    write_set(tmp_path, "b", ["b_1"])
    assert sets_folder(tmp_path) == tmp_path, "sets in the folder itself go before"


def test_stated_groups_and_organs_go_before_ids(tmp_path: Path) -> None:
    facts = {
        "group_per_image": {"s_1": "patient A", "s_2": "patient A", "TCGA-A7-A13F-01Z": "TCGA-A7-A13F"},
        "organ_per_image": {"s_1": "liver"},
        "organs": ["kidney"],
    }
    write_set(tmp_path, "stated", ["s_1", "s_2", "s_3", "TCGA-A7-A13F-01Z"], facts)
    samples = list_samples(tmp_path, ("stated",))
    assert [s.group for s in samples] == ["A7-A13F", "patient A", "patient A", "s_3"]
    assert [s.organ for s in samples] == ["kidney", "liver", "kidney", "kidney"]
    write_set(tmp_path, "monuseg", ["TCGA-A7-A13F-01Z", "TCGA-A7-A13E-01Z"], facts)
    assert [s.validation for s in list_samples(tmp_path, ("monuseg",))] == [False, True], "held out however it was converted"
    with pytest.raises(FormatError, match="patient"):
        group_of("monuseg", "tile_7")
