"""``wsiseg synth``: a reference and pictures in, a set that trains out; seeded, resumable, and deaf to the cohort's labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from wsiseg.cli.main import main
from wsiseg.datasets import list_samples
from wsiseg.errors import ConfigError, FormatError, InputError
from wsiseg.labels import rasterize_rings, read_labels, write_labels
from wsiseg.train import PatchSource, TargetOptions
from wsiseg.train.synthesis import RefineConfig, SynthConfig, make_synthetic, read_cohort, reference_shapes, refine_synthetic


def picture(seed: int, side: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Pink tissue with dark ellipses, and their labels."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    centers = rng.uniform(10, side - 10, (22, 2))
    rings = centers[:, None] + np.stack([rng.uniform(6, 9, (22, 1)) * np.cos(t), rng.uniform(4, 7, (22, 1)) * np.sin(t)], -1)
    labels = rasterize_rings(rings.reshape(-1, 2), np.arange(23) * 24, (side, side))
    rgb = np.where((labels > 0)[..., None], (90, 60, 140), (225, 170, 205)) + rng.normal(0, 5, (side, side, 3))
    return np.clip(rgb, 0, 255).astype(np.uint8), labels


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    for name, mpp, seeds in (("reference", 0.25, (0, 1)), ("cohort", 0.5, (2, 3))):
        folder = tmp_path / name
        folder.mkdir()
        for seed in seeds:
            rgb, labels = picture(seed)
            Image.fromarray(rgb).save(folder / f"p{seed}.png")
            write_labels(folder / f"p{seed}.labels.png", labels)
        (folder / "INFO.json").write_text(json.dumps({"license": f"licence of {name}", "mpp": mpp, "organs": [name]}))
    return tmp_path


CONFIG = SynthConfig(images=4, patch_px=96, seed=3)


def pixels(folder: Path) -> dict[str, bytes]:
    return {p.name: np.array(Image.open(p)).tobytes() for p in sorted(folder.glob("synth_*.png"))}


def test_the_same_seed_gives_the_same_images(sets: Path) -> None:
    made = make_synthetic(sets / "reference", sets / "cohort", sets / "a", CONFIG)
    assert (made.n_images, len(pixels(sets / "a"))) == (4, 8)
    # from a folder of the same pictures alone, its labels unread, and with some images made before
    bare = sets / "bare"
    bare.mkdir()
    for path in (sets / "cohort").glob("p?.png"):
        (bare / path.name).write_bytes(path.read_bytes())
    assert [p.name for p in read_cohort(bare)] == [p.name for p in read_cohort(sets / "cohort")]
    make_synthetic(sets / "reference", sets / "cohort", sets / "b", SynthConfig(images=4, patch_px=96, seed=3))
    assert pixels(sets / "a") == pixels(sets / "b")
    make_synthetic(sets / "reference", sets / "cohort", sets / "c", SynthConfig(images=4, patch_px=96, seed=4))
    assert pixels(sets / "a") != pixels(sets / "c")
    info = json.loads((sets / "a" / "INFO.json").read_text())
    assert "licence of cohort" in info["licence"]
    assert "licence of reference" in info["licence"]
    assert set(info["group_per_image"].values()) <= {"p2", "p3"}  # whose pixels they are


def test_an_interrupted_call_continues(sets: Path) -> None:
    make_synthetic(sets / "reference", sets / "cohort", sets / "whole", CONFIG)
    make_synthetic(sets / "reference", sets / "cohort", sets / "cut", CONFIG)
    (sets / "cut" / "INFO.json").unlink()
    (sets / "cut" / "synth_00002.labels.png").unlink()
    kept = sets / "cut" / "synth_00001.png"
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(kept)  # what is there is not made again
    make_synthetic(sets / "reference", sets / "cohort", sets / "cut", CONFIG)
    ours, theirs = pixels(sets / "cut"), pixels(sets / "whole")
    assert {name for name in ours if ours[name] != theirs[name]} == {kept.name}
    with pytest.raises(ConfigError, match="other settings"):
        make_synthetic(sets / "reference", sets / "cohort", sets / "cut", SynthConfig(images=9, patch_px=96))
    with pytest.raises(FormatError, match="already contains"):
        make_synthetic(sets / "reference", sets / "cohort", sets / "cut", CONFIG)


def test_sizes_follow_the_magnification(sets: Path) -> None:
    wanted, mpp = reference_shapes(sets / "reference", 96)
    assert mpp == 0.25
    make_synthetic(sets / "reference", sets / "cohort", sets / "out", SynthConfig(images=12, patch_px=96))
    drawn, _ = reference_shapes(sets / "out", 96)
    ratio = np.median(wanted.nuclei[:, 0]) / np.median(drawn.nuclei[:, 0])
    assert ratio == pytest.approx(4, rel=0.25)  # half the magnification, a quarter of the pixels


def test_refined_images_are_drawn_by_weight(sets: Path) -> None:
    runner = CliRunner()
    made = runner.invoke(main, ["synth", "make", str(sets / "reference"), str(sets / "cohort"), "--out", str(sets / "synth"),
                                "--images", "3", "--patch", "96"])  # fmt: skip
    assert made.exit_code == 0, made.output
    refined = runner.invoke(main, ["synth", "refine", str(sets / "synth"), str(sets / "cohort"), "--out", str(sets / "refined"),
                                   "--steps", "2", "--batch", "1", "--crop", "32", "--width", "4"])  # fmt: skip
    assert refined.exit_code == 0, refined.output
    info = json.loads((sets / "refined" / "INFO.json").read_text())
    assert info["refined"]["steps"] == 2
    samples = list_samples(sets, ("refined",))
    assert [s.weight for s in samples] == list(info["weight_per_image"].values())
    assert all(0.2 <= s.weight <= 2 for s in samples)
    for s in samples:
        np.testing.assert_array_equal(read_labels(s.labels_path), read_labels(sets / "synth" / Path(s.labels_path).name))
    # a picture of weight 0 is never drawn, one of weight 3 as often again as one of 1
    info["weight_per_image"] = dict(zip(info["weight_per_image"], (0, 1, 3), strict=True))
    (sets / "refined" / "INFO.json").write_text(json.dumps(info))
    weighted = list_samples(sets, ("refined",))
    for k, sample in enumerate(weighted):
        Image.fromarray(np.full((96, 96, 3), 60 * (k + 1), np.uint8)).save(sample.image_path)
    source = PatchSource(weighted, {"refined": 1.0}, TargetOptions("ellipse"), None, 16)
    seen = ((source.batch(400, 0, 0).rgb[:, :, 8, 8].mean(1) + 1) * 127.5 / 60).round().int().numpy() - 1
    counts = np.bincount(np.clip(seen, 0, 3), minlength=3)
    assert counts[0] == 0
    assert counts[2] / counts[1] == pytest.approx(3, rel=0.3)


def test_unusable_cohorts_are_refused(sets: Path) -> None:
    empty = sets / "empty"
    empty.mkdir()
    with pytest.raises(FormatError, match="found none"):
        make_synthetic(sets / "reference", empty, sets / "out", CONFIG)
    Image.new("RGB", (200, 200), "white").save(empty / "glass.png")
    with pytest.raises(InputError, match="H&E tissue"):
        make_synthetic(sets / "reference", empty, sets / "out", CONFIG)
    with pytest.raises(InputError, match="Lower the patch size"):
        make_synthetic(sets / "reference", sets / "cohort", sets / "out", SynthConfig(images=1, patch_px=512))
    with pytest.raises(ConfigError, match="overlap_max"):
        SynthConfig(overlap_max=0.9)
    with pytest.raises(FormatError, match="already contains"):
        refine_synthetic(sets / "reference", sets / "cohort", sets / "cohort", RefineConfig())
