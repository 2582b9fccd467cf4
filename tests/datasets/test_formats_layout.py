"""The unified layout: written whole, read by training, and its table of facts."""

import json
import os

import numpy as np
import pytest

from wsiseg.datasets import sets_folder
from wsiseg.datasets.formats import AnnotatedImage, SetStats, dataset_stats, write_dataset
from wsiseg.errors import FormatError
from wsiseg.labels import read_labels


def image(name, n=3, size=(32, 48), **facts):
    labels = np.zeros(size, np.int32)
    for k in range(n):
        labels[2:6, 2 + 6 * k : 6 + 6 * k] = 10 * (k + 1)
    return AnnotatedImage(name, np.full((*size, 3), 200, np.uint8), labels, **facts)


def test_facts_follow_the_images(tmp_path):
    images = [image("a", 3, mpp=0.25, organ="liver", group="p1"), image("b", 0, mpp=0.5), image("c", 5, (40, 40))]
    got = write_dataset(images, tmp_path / "set", "test", {"license": "CC0", "magnification": "mixed"})
    assert (got.n_images, got.n_nuclei, got.empty_images) == (3, 8, ("b",))
    info = json.loads((tmp_path / "set" / "INFO.json").read_text())
    assert info["mpp"] is None
    assert info["mpp_per_image"] == {"a": 0.25, "b": 0.5, "c": None}
    assert read_labels(tmp_path / "set" / "a.labels.png").max() == 3
    row = dataset_stats(tmp_path / "set")[0]
    assert row == SetStats(
        dataset="set", images=3, nuclei=8, nuclei_per_image=2.7, tile_size="48x32, 40x40", magnification="mixed",
        mpp="0.25 to 0.5", organs=1, groups=1, licence="CC0",
    )  # fmt: skip


def test_training_reads_what_was_written(tmp_path):
    data = pytest.importorskip("wsiseg.datasets.samples", reason="torch is not installed", exc_type=ImportError)
    write_dataset([image("a", mpp=0.5), image("b", mpp=0.25)], tmp_path / "set", "test", {})
    samples = data.list_samples(tmp_path, ("set",))
    assert [(s.image_id, s.mpp) for s in samples] == [("a", 0.5), ("b", 0.25)]
    rgb, labels = data.load_sample(samples[0])
    assert rgb.shape == (32, 48, 3)
    assert labels.max() == 3


def test_many_nuclei_go_to_tif(tmp_path):
    labels = np.arange(70_000, dtype=np.int32).reshape(250, 280)
    write_dataset([AnnotatedImage("big", np.zeros((250, 280, 3), np.uint8), labels)], tmp_path / "set", "test")
    assert read_labels(tmp_path / "set" / "big.labels.tif").max() == 69_999


def test_what_cannot_be_written_gives_the_reason(tmp_path):
    with pytest.raises(FormatError, match="two images have the id 'a'"):
        write_dataset([image("a"), image("a")], tmp_path / "twice", "test")
    assert not (tmp_path / "twice" / "INFO.json").exists()  # an unfinished set does not look finished
    bad = AnnotatedImage("x", np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.int32))
    with pytest.raises(FormatError, match="test, x"):
        write_dataset([bad], tmp_path / "sizes", "test")
    write_dataset([image("a")], tmp_path / "set", "test")
    with pytest.raises(FormatError, match="already contains"):
        write_dataset([image("b")], tmp_path / "set", "test")
    with pytest.raises(FormatError, match=r"no INFO\.json"):
        dataset_stats(tmp_path / "none")
    (tmp_path / "set" / "INFO.json").write_text("{")
    with pytest.raises(FormatError, match=r"INFO\.json"):
        dataset_stats(tmp_path / "set")


@pytest.mark.skipif("WSISEG_DATA" not in os.environ, reason="needs the given data sets")
def test_the_given_sets_have_the_nuclei_that_they_state():
    root = sets_folder(os.environ["WSISEG_DATA"])
    rows = {row.dataset: row for row in dataset_stats(root)}
    for folder in root.iterdir():
        if (folder / "INFO.json").is_file():
            info = json.loads((folder / "INFO.json").read_text())
            assert rows[info["name"]].images == info["n_images"]
            assert rows[info["name"]].nuclei == info["n_nuclei"]
