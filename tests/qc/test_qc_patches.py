"""Random patches: uniform over segmented tissue, the same for everyone, and what is on disk is what was drawn."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chisquare

from wsiseg.errors import ConfigError, FormatError, InputError
from wsiseg.qc import Patch, contour_png, inner_mask, patch_id, read_picture, sample_patches, write_pack
from wsiseg.qc.patch_pictures import make_patches
from wsiseg.qc.runs import load_run
from wsiseg.read import TissueMask
from wsiseg.types import Box


def sample(slide_id: str, mask: np.ndarray, *args: Any, **options: Any) -> list[Patch]:
    """Draw patches over a mask of 10 level-0 px a px."""
    return sample_patches(slide_id, TissueMask(mask, 10.0, 10.0), *args, **options)


def centers(patches: list) -> np.ndarray:
    return np.array([(p.box.x + p.box.w / 2, p.box.y + p.box.h / 2) for p in patches])


def test_centers_are_uniform_over_tissue_and_nowhere_else() -> None:
    mask = np.zeros((50, 80), np.uint8)
    mask[10:40, 10:30] = 1
    mask[20:25, 40:70] = 1
    found = np.concatenate([centers(sample(f"s{i}", mask, (800, 500), 8, 15)) for i in range(400)])
    rows, columns = (found[:, 1] // 10).astype(int), (found[:, 0] // 10).astype(int)
    assert mask[rows, columns].mean() > 0.97  # a center lies within a px of the point drawn, so a few fall beside the border
    large = ((columns >= 10) & (columns < 30)).sum()
    assert large / len(found) == pytest.approx(600 / 750, abs=0.02)
    quarters = np.bincount((columns[(columns >= 10) & (columns < 30)] - 10) // 5, minlength=4)
    assert chisquare(quarters).pvalue > 1e-3


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.text(min_size=1, max_size=20))
def test_more_patches_keep_the_earlier_ones(few: int, added: int, slide_id: str) -> None:
    mask = np.ones((20, 20), np.uint8)
    first = sample(slide_id, mask, (200, 200), 16, few)
    assert sample(slide_id, mask, (200, 200), 16, few + added)[:few] == first


def test_slide_id_and_seed_alone_decide() -> None:
    mask = np.ones((20, 20), np.uint8)
    first = sample("a", mask, (200, 200), 16, 15)
    np.random.seed(1)
    assert sample("a", mask, (200, 200), 16, 15) == first
    assert sample("b", mask, (200, 200), 16, 15) != first
    assert sample("a", mask, (200, 200), 16, 15, seed=1) != first


def test_patches_do_not_overlap_where_there_is_room_and_stay_in_the_slide() -> None:
    boxes = [p.box for p in sample("a", np.ones((100, 100), np.uint8), (1000, 1000), 64, 15)]
    for i, a in enumerate(boxes):
        assert 0 <= a.x <= a.x1 <= 1000
        assert 0 <= a.y <= a.y1 <= 1000
        assert not any(a.x < b.x1 and b.x < a.x1 and a.y < b.y1 and b.y < a.y1 for b in boxes[:i])
    tiny = sample("a", np.ones((2, 2), np.uint8), (20, 20), 16, 15)
    assert len(tiny) == 15  # no room: they may overlap


def test_failed_tiles_and_blank_slides_give_no_patches() -> None:
    mask = np.ones((10, 10), np.uint8)
    kept = sample("a", mask, (100, 100), 4, 50, excluded=[Box(0, 0, 60, 100)])
    assert all(p.box.x + 2 >= 59 for p in kept)
    assert sample("a", mask, (100, 100), 4, 5, excluded=[Box(0, 0, 100, 100)]) == []
    assert sample("a", mask * 0, (100, 100), 4, 5) == []
    with pytest.raises(ConfigError, match="at least one patch"):
        sample("a", mask, (100, 100), 4, 0)


def test_names_are_blind_and_distinct() -> None:
    names = {patch_id("run", f"TCGA-{s}", k) for s in range(40) for k in range(15)}
    assert len(names) == 600
    assert not any("TCGA" in n for n in names)


def test_contour_layer_is_clear_but_for_the_lines() -> None:
    xy = np.array([[10, 10], [30, 10], [30, 30], [10, 30], [10, 10]], np.float64)
    image = np.asarray(Image.open(io.BytesIO(contour_png(xy, np.array([0, 5]), (5.0, 5.0), 2.0, 100))).convert("RGBA"))
    assert image.shape == (100, 100, 4)
    assert image[10, 30, 3] == 255  # level-0 (20, 10) at (20 - 5) * 2, (10 - 5) * 2
    assert image[30, 30, 3] == 0  # inside
    assert image[80, 80, 3] == 0  # outside
    assert 100 < (image[..., 3] > 0).sum() < 1000


def test_run_renders_every_patch_as_the_slide_shows_it(make_run) -> None:
    import openslide

    run = load_run(make_run())
    summary = make_patches(run, 4)
    assert (summary.slides, summary.patches, summary.made, summary.failed) == (3, 12, 12, [])
    index = pq.read_table(run.qc / "patches.parquet").to_pylist()
    assert [e["patch_id"] for e in index] == sorted(e["patch_id"] for e in index)
    assert len({e["slide_id"] for e in index[:6]}) > 1  # mixed over slides
    e = index[0]
    assert e["side_px"] == round(256 / (0.499 / 0.25))
    tissue = Image.open(io.BytesIO(read_picture(run.qc, e["file"], f"{e['patch_id']}.png")))
    layer = Image.open(io.BytesIO(read_picture(run.qc, e["file"], f"{e['patch_id']}.contours.png")))
    assert (tissue.size, layer.size) == ((256, 256), (768, 768))
    with openslide.OpenSlide(run.row(e["slide_id"]).path) as slide:
        seen = (
            slide.read_region((e["x_px"], e["y_px"]), 0, (e["side_px"],) * 2)
            .convert("RGB")
            .resize((256, 256), Image.Resampling.BILINEAR)
        )
    assert np.abs(np.asarray(seen, float) - np.asarray(tissue, float)).mean() < 4  # gray levels: the same place
    lines = np.asarray(layer.convert("RGBA"))[..., 3] > 0
    assert lines.any() == (e["n_nuclei"] > 0)


def test_a_second_run_makes_nothing_and_more_only_the_rest(make_run) -> None:
    run = load_run(make_run(("a", "b")))
    make_patches(run, 3)
    before = {p.name: p.read_bytes() for p in (run.qc / "patches").iterdir()}
    assert make_patches(run, 3).made == 0
    assert {p.name: p.read_bytes() for p in (run.qc / "patches").iterdir()} == before
    first = {e["patch_id"] for e in pq.read_table(run.qc / "patches.parquet").to_pylist()}
    grown = make_patches(run, 3, more=2)
    assert grown.patches == 10
    after = {e["patch_id"] for e in pq.read_table(run.qc / "patches.parquet").to_pylist()}
    assert first < after
    shutil.rmtree(run.qc / "patches")
    assert make_patches(run, 5).made == 10
    assert {e["patch_id"] for e in pq.read_table(run.qc / "patches.parquet").to_pylist()} == after
    with pytest.raises(ConfigError, match="seed 0"):
        make_patches(run, 5, seed=1)


def test_a_missing_slide_is_reported_and_its_stored_patches_stay(make_run, tmp_path: Path) -> None:
    copy = tmp_path / "copy.svs"
    root = make_run(("a", "b"), path=str(copy))
    shutil.copy(Path(__file__).parents[1] / "data" / "CMU-1-Small-Region.svs", copy)
    make_patches(load_run(root), 2)
    copy.unlink()
    run = load_run(root)
    assert make_patches(run, 2).failed == []  # nothing to do, nothing opened
    summary = make_patches(run, 3)
    assert [s for s, _ in summary.failed] == ["a", "b"]
    assert all("copy.svs" in reason for _, reason in summary.failed)
    index = pq.read_table(run.qc / "patches.parquet").to_pylist()
    assert sorted(bool(e["file"]) for e in index) == [False, False, True, True, True, True]
    for e in index:
        if e["file"]:
            assert read_picture(run.qc, e["file"], f"{e['patch_id']}.png")[:4] == b"\x89PNG"


def test_packs_are_the_same_bytes_and_refuse_other_paths(tmp_path: Path) -> None:
    qc = tmp_path / "run" / "qc"
    for name in ("a.zip", "b.zip"):
        write_pack(qc / "patches" / name, [("x.png", b"123")])
    assert (qc / "patches" / "a.zip").read_bytes() == (qc / "patches" / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "outside.zip", "w") as z:
        z.writestr("x.png", b"secret")
    with pytest.raises(InputError, match="is outside"):
        read_picture(qc, "../../outside.zip", "x.png")
    with pytest.raises(InputError, match="does not contain the picture"):
        read_picture(qc, "patches/a.zip", "y.png")
    with pytest.raises(InputError, match="are missing"):
        read_picture(qc, "patches/c.zip", "x.png")
    (qc / "patches" / "a.zip").write_bytes(b"not a zip")
    with pytest.raises(FormatError, match="damaged"):
        read_picture(qc, "patches/a.zip", "x.png")


def test_what_is_no_run_is_refused(make_run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        load_run(tmp_path)
    root = make_run()
    shutil.rmtree(root / "nuclei")
    with pytest.raises(InputError, match="no polygon table"):
        load_run(root)
    (root / "slides.parquet").unlink()
    with pytest.raises(InputError, match="no slide statistics"):
        load_run(root)


def test_a_slide_id_that_is_a_path_is_refused(make_run) -> None:
    root = make_run(("a",))
    table = pq.read_table(root / "slides.parquet")
    place = table.schema.get_field_index("slide_id")
    pq.write_table(table.set_column(place, table.schema.field(place), [["../../elsewhere"]]), root / "slides.parquet")
    with pytest.raises(FormatError, match="outside the run folder"):
        load_run(root)


def test_the_margin_of_a_tissue_mask_is_left_out() -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[5:35, 10:50] = 1
    deep = inner_mask(mask, 20.0, 10.0, 45.0)  # 2.25 px in x, 4.5 px in y
    assert set(np.unique(np.flatnonzero(deep.any(axis=1)))) == set(range(9, 31))
    assert set(np.unique(np.flatnonzero(deep.any(axis=0)))) == set(range(12, 48))
    assert (inner_mask(mask, 20.0, 10.0, 500.0) == mask).all()  # thin tissue: better its border than none
    assert inner_mask(np.ones((4, 4), np.uint8), 1.0, 1.0, 9.0).all()
