"""Patches in Zarr: the same samples, and the same batches for the same seed, as from the folder they came from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from wsiseg.datasets import list_samples, load_sample, store_patches
from wsiseg.errors import FormatError
from wsiseg.train import AugmentConfig, PatchSource, TargetOptions

SIZES = {"a": {"x": (100, 130), "x-1": (64, 64), "x_2": (31, 200)}, "b": {"y": (64, 129)}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for dataset, images in SIZES.items():
        folder = tmp_path / "sets" / dataset
        folder.mkdir(parents=True)
        info = {"mpp_per_image": {"x": 0.5, "y": None}, "mpp": 0.25, "organ_per_image": {"x": "liver"}, "license": "CC0"}
        (folder / "INFO.json").write_text(json.dumps(info))
        for name, (h, w) in images.items():
            Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(folder / f"{name}.png")
            labels = np.repeat(np.repeat(rng.integers(0, 90_000, (h // 8 + 1, w // 8 + 1)), 8, 0), 8, 1)[:h, :w]
            if name == "y":
                tifffile.imwrite(folder / f"{name}.labels.tif", labels.astype(np.uint32))
            else:
                Image.fromarray((labels % 65536).astype(np.uint16)).save(folder / f"{name}.labels.png")
    return tmp_path / "sets"


def test_a_store_gives_back_every_sample(root: Path, tmp_path: Path) -> None:
    counts = store_patches(root, tmp_path / "p.zarr", patch_px=64)
    assert counts == {name: sum(-(-h // 64) * -(-w // 64) for h, w in images.values()) for name, images in SIZES.items()}
    files, stored = list_samples(root, ("a", "b")), list_samples(tmp_path / "p.zarr", ("a", "b"))
    facts = [(s.dataset, s.image_id, s.group, s.mpp, s.organ, s.validation) for s in files]
    assert facts == [(s.dataset, s.image_id, s.group, s.mpp, s.organ, s.validation) for s in stored]
    assert ("a", "x", "x", 0.5, "liver", False) in facts
    for one, other in zip(files, stored, strict=True):
        for expected, got in zip(load_sample(one), load_sample(other), strict=True):
            assert expected.dtype == got.dtype
            np.testing.assert_array_equal(expected, got)


def test_the_same_seed_gives_the_same_batches(root: Path, tmp_path: Path) -> None:
    store_patches(root, tmp_path / "p.zarr", ("a", "b"), patch_px=32)
    sources = [
        PatchSource(list_samples(place, ("a", "b")), {"a": 0.5, "b": 0.5}, TargetOptions("ellipse"), AugmentConfig(), 48)
        for place in (root, tmp_path / "p.zarr")
    ]
    for step in range(3):
        one, other = (source.batch(3, 7, step) for source in sources)
        assert one.rgb.equal(other.rgb)
        assert one.target.equal(other.target)
        assert one.weight.equal(other.weight)


def test_the_store_is_sharded_and_any_zarr_reader_reads_it(root: Path, tmp_path: Path) -> None:
    store_patches(root, tmp_path / "p.zarr", patch_px=64)
    group = zarr.open_group(str(tmp_path / "p.zarr"), mode="r")["a"]
    assert group["rgb"].metadata.zarr_format == 3
    assert group["rgb"].chunks == (1, 64, 64, 3)
    assert len(list((tmp_path / "p.zarr" / "a" / "rgb").rglob("c/*/*/*/*"))) == 1, "one file for all patches of a small set"
    with Image.open(root / "a" / "x.png") as image:
        first = next(facts["first"] for facts in group.attrs["images"] if facts["id"] == "x")
        np.testing.assert_array_equal(group["rgb"][first + 1], np.asarray(image)[:64, 64:128])
    assert group.attrs["info"]["license"] == "CC0"


def test_what_is_wrong_is_reported(root: Path, tmp_path: Path) -> None:
    store_patches(root, tmp_path / "p.zarr", ("a",))
    with pytest.raises(FormatError, match="already exists"):
        store_patches(root, tmp_path / "p.zarr")
    with pytest.raises(FormatError, match=r"no set 'b', only \['a'\]"):
        list_samples(tmp_path / "p.zarr", ("b",))
    zarr.open_group(str(tmp_path / "other.zarr"), mode="w", zarr_format=3)
    with pytest.raises(FormatError, match="not of patches"):
        list_samples(tmp_path / "other.zarr", ("a",))
    (root / "b" / "y.png").unlink()
    with pytest.raises(FormatError, match=r"y\.png"):
        store_patches(root, tmp_path / "q.zarr")
    assert not list(tmp_path.glob("*q.zarr*")), "nothing is left of a failed one"


def test_two_label_images_of_one_picture_are_refused(root: Path) -> None:
    tifffile.imwrite(root / "a" / "x.labels.tif", np.zeros((100, 130), np.uint32))
    with pytest.raises(FormatError, match="both"):
        list_samples(root, ("a",))
