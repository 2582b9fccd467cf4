"""A run looked at from its folder alone: how it stands, what failed, and whether every file is whole and agrees."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.run.conftest import ROOT, run_here
from wsiseg.log import EventLog, log
from wsiseg.results.folder import RunFolder
from wsiseg.results.records import read_inputs
from wsiseg.run.presence import Presence, deaths, read_workers
from wsiseg.run.status import group_errors, run_status
from wsiseg.run.verify import verify_run


@pytest.fixture(scope="module")
def made(crop_png: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: a slide with nuclei, a broken one, one without mpp."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copyfile(crop_png, folder / "good.png")
    shutil.copyfile(crop_png, folder / "nompp.png")
    (folder / "broken.svs").write_bytes(b"not a slide" * 99)
    (folder / "m.csv").write_text("path,mpp\ngood.png,0.499\nbroken.svs,0.499\nnompp.png,\n")
    done = run_here("segment", folder / "m.csv", "--tile", "700", "--out", folder / "run", "--metrics-file", folder / "m.prom")
    assert done.exit_code == 1, done.output
    return folder / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_a_whole_run_is_whole(made: Path) -> None:
    verdict = verify_run(made)
    assert verdict.findings == ()
    assert (verdict.slides, verdict.tables) == (3, 1)
    assert verdict.nuclei == pq.read_table(made / "nuclei/good.parquet").num_rows > 0
    done = run_here("verify", made)
    assert done.exit_code == 0
    assert "all complete, all agree" in done.output


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return edit


def fewer_rows(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.slice(0, table.num_rows - 1), path)


def twice(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table.slice(0, 1), table.slice(0, table.num_rows - 1)]), path)


def no_rows(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(0, 0), path)


def other_number(path: Path) -> None:
    table = pq.read_table(path)
    column = table.schema.get_field_index("n_nuclei")
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array([1] * table.num_rows, pa.int64())), path)


def stamped(path: Path) -> None:
    table = pq.read_table(path)
    facts = json.loads(table.schema.metadata[b"wsiseg"])
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, b"wsiseg": json.dumps({**facts, "digest": "0"})}), path
    )


DAMAGE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "a flipped bit in a table": ("nuclei/good.parquet", flip, "SHA-256 differs"),
    "a truncated table": ("nuclei/good.parquet", cut, "cannot be read to its end"),
    "a row too few": ("nuclei/good.parquet", fewer_rows, "but the slide's row has"),
    "a nucleus twice": ("nuclei/good.parquet", twice, "holds a nucleus twice"),
    "a table of other settings": ("nuclei/good.parquet", stamped, "was made with other settings"),
    "no table": ("nuclei/good.parquet", Path.unlink, "is missing"),
    "a broken record": ("slides/good.json", cut, "cannot be read"),
    "no record": ("slides/good.json", Path.unlink, "has no slides/"),
    "a record of another slide": ("slides/good.json", edited(lambda r: r["row"].update(slide_id="x")), "not the record of"),
    "a record of other settings": ("slides/good.json", edited(lambda r: r.update(digest="0" * 16)), "by a run with other"),
    "a lost tile": ("slides/good.json", edited(lambda r: r["row"].update(tiles_done=1)), "tiles done, empty and failed"),
    "lost nuclei": ("slides/good.json", edited(lambda r: r.update(n_nuclei_of_tiles=10**6)), "its tiles had 1000000 nuclei"),
    "a failure that is not told": ("slides/good.json", edited(lambda r: r["row"].update(tiles_failed=1)), "0 are recorded"),
    "a broken mask": ("slides/good.tissue.png", lambda p: p.write_bytes(p.read_bytes()[:60]), "cannot be read"),
    "an altered mask": ("slides/good.tissue.png", cut, "SHA-256 differs"),
    "a broken slides table": ("slides.parquet", cut, "cannot be read"),
    "no slides table": ("slides.parquet", Path.unlink, "is missing"),
    "a slides table with other numbers": ("slides.parquet", other_number, "differs from slides/good.json"),
    "a CSV with other numbers": ("slides.csv", cut, "differs from slides.parquet"),
    "no CSV": ("slides.csv", Path.unlink, "cannot be read"),
    "a broken errors table": ("errors.parquet", cut, "cannot be read"),
    "an errors table without errors": ("errors.parquet", no_rows, "its 0 failures"),
    "a slide that was never done": (
        "inputs.jsonl", lambda p: p.write_text(p.read_text() + '{"slide_id": "z", "path": "z.svs"}\n'), "not done yet",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_each_damage_is_found(case: str, run: Path) -> None:
    name, damage, words = DAMAGE[case]
    damage(run / name)
    verdict = verify_run(run)
    assert not verdict.ok
    assert any(words in f.what for f in verdict.findings if f.wrong), verdict.findings
    assert run_here("verify", run).exit_code == 1


def test_leftovers_are_noted_but_not_wrong(run: Path) -> None:
    (run / "nuclei/.good.parquet.7-abc.partial").write_bytes(b"x")
    verdict = verify_run(run)
    assert verdict.ok
    assert [f.where for f in verdict.findings] == ["nuclei/.good.parquet.7-abc.partial"]


def test_what_verify_requests_repairs_the_run(run: Path) -> None:
    flip(run / "nuclei/good.parquet")
    (finding,) = [f for f in verify_run(run).findings if "SHA-256" in f.what]
    (run / finding.where).unlink()
    slides = list(read_inputs(RunFolder(run)).values())
    assert {s.slide_id for s in slides} == {"good", "broken", "nompp"}
    again = run_here("segment", Path(slides[0].path).parent / "m.csv", "--tile", "700", "--out", run)
    assert again.exit_code == 1
    assert verify_run(run).ok


def test_status_counts_what_is_there(made: Path) -> None:
    now = run_status(made)
    assert now.state == "finished"
    assert now.slides == {"done": 1, "empty": 0, "suspect": 0, "partial": 0, "failed": 2, "in_work": 0, "waiting": 0}
    assert now.nuclei == pq.read_table(made / "nuclei/good.parquet").num_rows
    assert now.tiles_done == json.loads((made / "slides/good.json").read_text())["row"]["tiles_done"]
    notes = run_here("status", made, "--slides").output
    assert "1 done, 2 failed, of 3" in notes
    assert "read s" in notes
    as_json = json.loads(run_here("status", made, "--json").output)
    assert as_json["slides"] == now.slides


def test_status_of_a_run_in_progress_and_of_one_that_stopped_reporting(run: Path) -> None:
    (run / "parts/good").mkdir(parents=True, exist_ok=True)
    for k in range(3):
        (run / f"parts/good/{k:06d}.parquet").write_bytes(b"x")
    (run / "inputs.jsonl").write_text((run / "inputs.jsonl").read_text() + '{"slide_id": "z", "path": "z.svs"}\n{"slide_')
    progress = json.loads((run / "progress/run.json").read_text())
    good = (run / "slides/good.json").read_text()
    (run / "slides/good.json").unlink()
    progress |= {"state": "running", "elapsed_s": 100.0, "slides": 4, "slides_done": 2, "mm2": 8.0, "mm2_done": 2.0}
    (run / "progress/run.json").write_text(json.dumps(progress))
    presence = Presence(run / "workers", "Worker-1")
    with presence.busy("task", "tile", "good", 3):
        now = run_status(run)
        assert [(w.at[0].tile_id, w.tiles_done) for w in now.workers] == [(3, 0)]
        assert "tile good tile 3" in run_here("status", run).output
    assert now.state == "running"
    assert (now.slides["in_work"], now.slides["waiting"], now.tiles_done) == (1, 1, 3)
    assert now.mm2_per_s == pytest.approx(0.02)
    assert now.eta_s is None, "one slide is not opened yet, and no finished one says how large slides are"
    presence.close()
    assert run_status(run).workers == ()
    (run / "slides/good.json").write_text(good)
    assert run_status(run).eta_s == pytest.approx(6.0 / 0.02), "what is opened is more than two mean slides"
    old = time.time() - 3600
    os.utime(run / "progress/run.json", (old, old))
    assert run_status(run).state == "silent"


def test_errors_are_grouped_and_each_has_an_advice(made: Path) -> None:
    groups = {g.kind: g for g in group_errors(made)}
    assert set(groups) == {"SlideOpenError", "MissingMppError"}
    assert groups["MissingMppError"].slides == ("nompp",)
    assert "--mpp" in groups["MissingMppError"].advice
    notes = run_here("errors", made)
    assert notes.exit_code == 1
    assert "--retry-failed" in notes.output


def test_the_same_failure_of_many_slides_is_one_group(run: Path) -> None:
    record = json.loads((run / "slides/broken.json").read_text())
    for k in range(30):
        error = {
            **record["errors"][0],
            "slide_id": f"s{k}",
            "tile_id": k,
            "error": f"TileReadError: slide s{k} (/a/{k}.svs): x={k}",
        }
        text = json.dumps({**record, "row": {**record["row"], "slide_id": f"s{k}"}, "errors": [error]})
        (run / f"slides/s{k}.json").write_text(text)
    (group,) = [g for g in group_errors(run) if g.kind == "TileReadError"]
    assert (group.tiles, len(group.slides)) == (30, 30)


def test_failed_slides_alone_are_retried_with_what_was_missing(run: Path) -> None:
    table = run / "nuclei/good.parquet"
    before = table.stat().st_mtime_ns
    again = run_here("segment", "--retry-failed", "--mpp", "0.499", "--out", run)
    assert again.exit_code == 1, again.output
    rows = {r["slide_id"]: r["status"] for r in pq.read_table(run / "slides.parquet").to_pylist()}
    assert rows == {"good": "done", "broken": "failed", "nompp": "done"}
    assert table.stat().st_mtime_ns == before, "what was done is left alone"
    assert verify_run(run).ok


def test_folders_without_a_run_are_named(tmp_path: Path) -> None:
    for command in ("status", "errors", "verify"):
        done = run_here(command, tmp_path)
        assert done.exit_code == 2
        assert "contains no wsiseg run" in done.output
    done = run_here("segment", "--retry-failed", "--out", tmp_path)
    assert "nothing to retry" in done.output
    assert run_here("segment", "--out", tmp_path).exit_code == 2


def test_metrics_are_in_prometheus_text_format(made: Path) -> None:
    text = (made.parent / "m.prom").read_text()
    names = set(re.findall(r"^# TYPE (\S+) (?:counter|gauge)$", text, re.MULTILINE))
    values = dict(re.findall(r'^(\w+)\{run="[^"]+",client="run"\} (\S+)$', text, re.MULTILINE))
    assert set(values) == names
    assert len(text.splitlines()) == 3 * len(names)
    assert float(values["wsiseg_slides_done_total"]) == 3
    assert float(values["wsiseg_running"]) == 0


def test_log_records_the_run_and_stays_small(made: Path, tmp_path: Path) -> None:
    events = [json.loads(line) for line in (made / "log.jsonl").read_text().splitlines()]
    names = [e["event"] for e in events]
    assert names[0] == "run_started"
    assert names[-1] == "run_ended"
    closed = {e["slide_id"]: e for e in events if e["event"] == "slide_closed"}
    assert closed["good"]["n_nuclei"] > 0
    assert closed["good"]["seconds_predict"] > 0
    assert "cannot" in closed["broken"]["error"] or "not a slide" in closed["broken"]["error"]
    small = EventLog(tmp_path / "log.jsonl", max_bytes=5000)
    log.addHandler(small)
    for k in range(1000):
        log.warning("line %d \n with a break and ü", k)
    log.removeHandler(small)
    sizes = [p.stat().st_size for p in tmp_path.glob("log.jsonl*")]
    assert sum(sizes) < 11_000
    last = (tmp_path / "log.jsonl").read_text().splitlines() or (tmp_path / "log.jsonl.1").read_text().splitlines()
    assert json.loads(last[-1])["text"].startswith("line 999")


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    EventLog(tmp_path / "no such folder" / "log.jsonl").event("x")
    presence = Presence(tmp_path / "f" / "w", "a")
    presence.close()
    (tmp_path / "file").write_text("")
    presence = Presence(tmp_path / "file" / "w", "a")
    with presence.busy("t", "tile", "s", 1):
        pass
    presence.close()


HANG = """
import ctypes, sys
from pathlib import Path
from wsiseg.run.presence import Presence
presence = Presence(Path(sys.argv[1]), "w", timeout_s=0.5)
with presence.busy("t1", "tile", "s", 1):
    pass
with presence.busy("t2", "tile", "s", 2):
    ctypes.PyDLL(None).sleep(60)
"""


def test_a_hang_in_c_that_holds_the_interpreter_is_ended_and_named(tmp_path: Path) -> None:
    start = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", HANG, str(tmp_path)], cwd=ROOT, timeout=60, check=False, capture_output=True)
    assert ended.returncode == 1
    assert time.monotonic() - start < 50
    (worker,) = read_workers(tmp_path)
    assert worker.tiles_done == 1
    assert deaths(tmp_path, "t1") == []
    (death,) = deaths(tmp_path, "t2")
    assert (death.kind, death.slide_id, death.tile_id, death.alone) == ("tile", "s", 2, True)
    assert death.reason.startswith("TileTimeout: no end within 0.5 s")
