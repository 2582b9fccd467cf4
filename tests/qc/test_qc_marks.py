"""Marks survive a crash at any byte, never count twice, and never come from another run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.errors import ConfigError, FormatError, InputError, OutputInUseError
from wsiseg.qc import MarkLog, decide, read_all_marks, read_marks
from wsiseg.qc.review import ReviewSession, parse_share, patch_queue

WORDS = ("adequate", "not_adequate", "unsure")


def log_of(folder: Path, reviewer: str = "ann", run: str = "r1") -> MarkLog:
    return MarkLog(folder, reviewer, run)


def test_a_mark_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    log.append("patches", "p1", "adequate", seconds=1.25)
    (mark,) = read_marks(tmp_path / "ann.jsonl", "r1")  # another handle, while the first is open
    assert (mark.item, mark.mark, mark.reviewer, mark.seconds) == ("p1", "adequate", "ann", 1.25)
    log.close()


@pytest.mark.parametrize("cut", range(1, 40, 7))
def test_a_torn_last_line_is_dropped_and_writing_continues(tmp_path: Path, cut: int) -> None:
    log = log_of(tmp_path)
    for item in ("p1", "p2", "p3"):
        log.append("patches", item, "adequate")
    log.close()
    path = tmp_path / "ann.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    again = log_of(tmp_path)
    assert [m.item for m in again.marks] == ["p1", "p2"]
    again.append("patches", "p3", "unsure")
    again.close()
    assert [(m.item, m.mark) for m in read_marks(path, "r1")] == [("p1", "adequate"), ("p2", "adequate"), ("p3", "unsure")]


def test_a_killed_process_loses_no_acknowledged_mark(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from wsiseg.qc import MarkLog\n"
        "log = MarkLog(Path(sys.argv[1]), 'ann', 'r1')\n"
        "for i in range(50):\n"
        "    log.append('patches', f'p{i}', 'adequate')\n"
        "    print(i, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == -9
    assert len(read_marks(tmp_path / "ann.jsonl", "r1")) == len(done.stdout.split()) == 50
    log_of(tmp_path).close()  # the dead process holds no lock


def test_foreign_and_broken_files_are_refused_with_their_line(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    log.append("patches", "p1", "adequate")
    log.close()
    path = tmp_path / "ann.jsonl"
    with pytest.raises(FormatError, match=r"line 1: the mark belongs to run r1, but this folder holds run r2"):
        log_of(tmp_path, run="r2")
    good = path.read_bytes()
    for bad in (b"{}\n", b"nonsense\n", b'{"run":"r1"}\n', json.dumps({**json.loads(good), "mark": "good"}).encode() + b"\n"):
        path.write_bytes(good + bad)
        with pytest.raises(FormatError, match="line 2"):
            log_of(tmp_path)


def test_one_server_a_reviewer(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    with pytest.raises(OutputInUseError, match="another reviewer name"):
        log_of(tmp_path)
    other = log_of(tmp_path, "bob")
    log.close()
    log_of(tmp_path).close()
    other.close()


@pytest.mark.parametrize("name", ["", "../ann", "a/b", ".hidden", "a" * 65, "ann marie"])
def test_a_reviewer_name_is_a_file_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="reviewer name"):
        log_of(tmp_path, name)


def test_decisions_of_several_reviewers(tmp_path: Path) -> None:
    reported = {
        "ann": {"1": "adequate", "2": "adequate", "3": "unsure", "4": "unsure"},
        "bob": {"1": "adequate", "2": "not_adequate", "3": "adequate"},
    }
    for who, words in reported.items():
        log = log_of(tmp_path, who)
        for item, word in words.items():
            log.append("patches", item, word)
        log.append("slides", "s1", "unacceptable")
        log.close()
    marks = read_all_marks(tmp_path, "r1", "patches")
    assert decide(marks, "adequate", "not_adequate") == {"1": "adequate", "2": "not_adequate", "3": "adequate", "4": "unsure"}
    assert decide(read_all_marks(tmp_path, "r1", "slides"), "acceptable", "unacceptable") == {"s1": "unacceptable"}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(WORDS), st.just("undo"), st.just("restart"), st.tuples(st.integers(0, 9), st.sampled_from(WORDS))
        ),
        max_size=40,
    )
)
def test_a_session_equals_a_plain_list_of_actions(tmp_path_factory: pytest.TempPathFactory, actions: list) -> None:
    """Mark, change, undo and restart in any order: the same latest marks, order and next item as a plain model."""
    folder = tmp_path_factory.mktemp("marks")
    items = [f"p{i}" for i in range(10)]
    session = ReviewSession(log_of(folder), {"patches": items})
    model: dict[str, str] = {}
    front: str | None = None
    for action in actions:
        open_items = [i for i in items if i not in model]
        if action == "restart":
            session.close()
            session = ReviewSession(log_of(folder), {"patches": items})
            front = None
        elif action == "undo":
            if model:
                front, _ = model.popitem()
            session.undo("patches")
        elif isinstance(action, tuple) or open_items:
            item, word = (items[action[0]], action[1]) if isinstance(action, tuple) else (open_items[0], action)
            model.pop(item, None)
            model[item] = word
            session.mark("patches", item, word)
            front = None
        state = session.state("patches", 32)
        assert state["next"] == [i for i in items if i not in model]
        assert (state["done"], state["total"]) == (len(model), 10)
    session.close()
    stands = read_all_marks(folder, "r1", "patches")["ann"]
    assert {i: m.mark for i, m in stands.items()} == model
    assert list(stands) == list(model)
    assert front is None or front not in model


def test_what_is_undone_comes_next(tmp_path: Path) -> None:
    session = ReviewSession(log_of(tmp_path), {"patches": list("abcd"), "slides": ["s"]})
    session.mark("patches", "c", "adequate")
    session.mark("slides", "s", "acceptable", "fine")
    assert session.undo("patches")["next"] == ["c", "a", "b", "d"]
    assert session.undo("patches")["next"] == ["a", "b", "c", "d"]  # nothing left to undo
    with pytest.raises(InputError, match="not in the queue"):
        session.mark("patches", "zz", "adequate")
    with pytest.raises(InputError, match="Expected one of"):
        session.mark("slides", "s", "adequate")
    with pytest.raises(InputError, match="Expected the queue to be one of"):
        session.state("pixels")
    session.close()


def test_work_is_divided_and_checked() -> None:
    ids = [f"{i:04d}" for i in range(2000)]
    shares = [patch_queue(ids, share=(k, 3)) for k in (1, 2, 3)]
    assert sorted(i for share in shares for i in share) == ids
    assert all(abs(len(s) - 667) < 120 for s in shares)
    second = patch_queue(ids, own=ids[:1], others=ids[:1000], second_opinion_frac=0.2)
    assert set(second) <= set(ids[:1000])
    assert abs(len(second) - 200) < 60
    assert patch_queue(ids, others=ids[:1000]) == ids[1000:]
    assert parse_share("2/3") == (2, 3)
    for bad in ("0/2", "3/2", "x", "1/2/3"):
        with pytest.raises(ConfigError, match="share"):
            parse_share(bad)
    with pytest.raises(ConfigError, match="share of second opinions"):
        patch_queue(ids, second_opinion_frac=1.5)
