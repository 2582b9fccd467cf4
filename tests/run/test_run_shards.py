"""Job arrays: shards divide the slides, may share a folder, and leave what one run leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.run.conftest import run_here
from wsiseg.errors import FormatError, InputError, OutputInUseError
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import SlideInput
from wsiseg.results.slide_record import SlideRecord, write_slide
from wsiseg.rows import SlideRow
from wsiseg.run.segment import _sweep
from wsiseg.run.shards import Shard, merge_shards

OPTIONS = ("--mpp", "0.499", "--tile", "400", "--precision", "fp32", "--cohort", "CMU")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("abcé-._ 019", min_size=1, max_size=12), unique=True, max_size=40), st.integers(1, 12), st.randoms())
def test_shares_are_a_partition_of_equal_size_in_any_order(names: list[str], n: int, rng: object) -> None:
    slides = [SlideInput(name, f"{name}.svs") for name in names]
    shares = [Shard(k, n).take(slides) for k in range(1, n + 1)]
    assert sorted(s.slide_id for share in shares for s in share) == sorted(names)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    mixed = list(slides)
    rng.shuffle(mixed)  # type: ignore[attr-defined]
    for k, share in enumerate(shares, start=1):
        assert set(Shard(k, n).take(mixed)) == set(share)


@pytest.mark.parametrize("bad", ["", "3", "0/4", "5/4", "a/b", "1/0", "-1/4", "1/4/2", "1.0/4"])
def test_a_share_is_one_of_n(bad: str) -> None:
    with pytest.raises(InputError, match="3/8"):
        Shard.parse(bad)


@pytest.fixture(scope="module")
def slides(crop_png: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four slides: two of tissue, one white, one broken."""
    folder = tmp_path_factory.mktemp("slides")
    with Image.open(crop_png) as crop:
        crop.crop((0, 0, 300, 260)).save(folder / "a.png")
        crop.crop((300, 200, 620, 500)).save(folder / "b.png")
    Image.new("RGB", (300, 200), (255, 255, 255)).save(folder / "white.png")
    (folder / "broken.svs").write_bytes(b"this is not a slide" * 50)
    return folder


@pytest.fixture(scope="module")
def whole(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run_here("segment", slides, *OPTIONS, "--out", out).exit_code == 1
    return out


def shown(table: Path) -> list[dict[str, object]]:
    """A table without the seconds, which no two runs share."""
    return [{k: v for k, v in row.items() if not k.startswith("seconds_")} for row in pq.read_table(table).to_pylist()]


def names_in(out: Path) -> set[str]:
    notes = ("log", "progress", "inputs", "workers")  # what a run tells of itself
    return {str(p.relative_to(out)) for p in out.rglob("*") if not str(p.relative_to(out)).startswith(notes)}


def test_shards_in_one_folder_leave_what_one_run_leaves(slides: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    codes = []
    for k in (2, 3, 1):
        result = run_here("segment", slides, *OPTIONS, "--out", out, "--shard", f"{k}/3")
        codes.append(result.exit_code)
        assert (out / "slides.parquet").exists() == (k == 1), "the last one, and only that one, makes the tables"
        if k == 3:
            early = run_here("merge", out)
            assert early.exit_code == 2
            assert "not done yet" in early.output
            assert "--shard 1/3" in early.output
    assert sorted(codes) == [0, 0, 1], "only the shard of the broken slide failed"
    assert names_in(out) == names_in(whole)
    for table in ("a", "b", "white"):
        assert (out / f"nuclei/{table}.parquet").read_bytes() == (whole / f"nuclei/{table}.parquet").read_bytes()
        assert (out / f"slides/{table}.tissue.png").read_bytes() == (whole / f"slides/{table}.tissue.png").read_bytes()
    for table in ("slides.parquet", "errors.parquet"):
        assert shown(out / table) == shown(whole / table)
        assert pq.read_schema(out / table) == pq.read_schema(whole / table)
    assert json.loads((out / "run.json").read_text())["digest"] == json.loads((whole / "run.json").read_text())["digest"]
    # the same folder is the same run's for one without shards too
    again = run_here("segment", slides, *OPTIONS, "--out", out)
    assert again.exit_code == 1
    assert shown(out / "slides.parquet") == shown(whole / "slides.parquet")


def entered(folder: RunFolder, names: list[str], k: int, n: int) -> None:
    Shard(k, n).enter(folder, [SlideInput(s, f"{s}.svs") for s in names])


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create()
    made.run_json.write_text(json.dumps({"digest": "d", "results": {}}))
    return made


def test_shards_of_other_slides_are_not_merged(folder: RunFolder) -> None:
    entered(folder, ["a", "b"], 1, 2)
    entered(folder, ["a", "b", "c"], 2, 2)
    with pytest.raises(FormatError, match=r"1/2 and 2/2 .*\(1 slides are in one list only, such as c"):
        merge_shards(folder.root)


def test_merging_waits_for_living_shards_and_they_do_not_wait_for_each_other(folder: RunFolder) -> None:
    entered(folder, ["a"], 1, 2)
    with folder.exclusive("1-of-2"), folder.exclusive("2-of-2"):
        with pytest.raises(OutputInUseError):
            merge_shards(folder.root)
        with pytest.raises(OutputInUseError), folder.exclusive("1-of-2"):
            pass
        with pytest.raises(OutputInUseError), folder.exclusive():
            pass
    with folder.exclusive(), pytest.raises(OutputInUseError), folder.exclusive("1-of-2"):
        pass


def test_what_another_digest_left_counts_as_missing(folder: RunFolder) -> None:
    entered(folder, ["a", "b"], 1, 1)
    for name, digest in (("a", "d"), ("b", "older")):
        write_slide(folder, SlideRecord(digest, SlideRow.blank(name, "done")))
    with pytest.raises(InputError, match=r"1 of 2 slides .* not done yet \(b\)\. Run --shard 1/1 again"):
        merge_shards(folder.root)


def test_a_shard_sweeps_only_after_its_own(folder: RunFolder) -> None:
    folder.parts("a").mkdir()
    folder.parts("b").mkdir()
    for sub, name in (("nuclei", "{}.parquet"), ("slides", "{}.json"), ("slides", "{}.tissue.png"), ("parts/{}", "job.json")):
        for slide in ("a", "b"):
            (folder.root / sub.format(slide) / f".{name.format(slide)}.7-abc123.partial").touch()
    _sweep(folder, [SlideInput("a", "a.svs")])
    left = {p.name for p in folder.root.rglob("*.partial")}
    assert left == {".b.parquet.7-abc123.partial", ".b.json.7-abc123.partial", ".b.tissue.png.7-abc123.partial",
                    ".job.json.7-abc123.partial"}  # fmt: skip
    assert not list(folder.parts("a").iterdir())
