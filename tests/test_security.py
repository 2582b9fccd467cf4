"""What the package must never do, read from its own source; and who may read and write what it makes."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.run.conftest import run_here
from wsiseg.errors import WeightsError, WsisegError

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "wsiseg").rglob("*.py"))

FORBIDDEN_IMPORTS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "telnetlib", "xmlrpc", "pty"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnv", "yaml.load", "yaml.full_load",
    "yaml.unsafe_load", "tempfile.mktemp", "pd.read_pickle", "pandas.read_pickle", "os.chmod", "os.umask",
}  # fmt: skip
WALL_CLOCK = {
    "time.time",
    "time.time_ns",
    "datetime.datetime.now",
    "datetime.now",
    "datetime.datetime.utcnow",
    "time.localtime",
}
MAY_TELL_THE_TIME = {"log.py", "run/status.py", "qc/report_run.py", "qc/marks.py", "cli/commands_segment.py"}
"""Where a date is written down or an age is shown. Deadlines, rates and retries use the steady clock."""


def calls() -> Iterator[tuple[Path, str, ast.Call]]:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path, ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


def test_nothing_that_runs_what_it_reads() -> None:
    wrong = []
    for path, name, call in calls():
        where = f"{path.relative_to(ROOT)}:{call.lineno} {name}"
        if name in FORBIDDEN_CALLS or name.endswith((".read_pickle", ".unsafe_load")):
            wrong.append(where)
        if keyword(call, "shell") not in (None, "False") or keyword(call, "allow_pickle") not in (None, "False"):
            wrong.append(f"{where}: shell or pickle")
        if name == "torch.load" and keyword(call, "weights_only") != "True":
            wrong.append(f"{where} without weights_only=True")
        if keyword(call, "verify") == "False" or name.endswith("_create_unverified_context"):
            wrong.append(f"{where}: certificates unchecked")
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{path.relative_to(ROOT)}: imports {n}" for n in names if n.split(".")[0] in FORBIDDEN_IMPORTS]
    assert not wrong, "\n".join(wrong)


def test_no_decision_hangs_on_the_wall_clock() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{call.lineno} {name}"
        for path, name, call in calls()
        if name in WALL_CLOCK and path.relative_to(ROOT / "wsiseg").as_posix() not in MAY_TELL_THE_TIME
    ]
    assert not wrong, "\n".join(wrong)


def test_files_of_a_host_whose_clock_is_ahead_are_fresh(tmp_path: Path) -> None:
    from wsiseg.run.status import run_status

    (tmp_path / "progress").mkdir()
    (tmp_path / "inputs.jsonl").write_text('{"slide_id": "a", "path": "a.svs"}\n')
    progress = tmp_path / "progress/run.json"
    progress.write_text('{"state": "running", "slides": 1, "slides_done": 0, "mm2": 0, "mm2_done": 0, "elapsed_s": 5}')
    for ahead_s in (0, 86400, 3e8):
        at = progress.stat().st_ctime + ahead_s
        os.utime(progress, (at, at))
        now = run_status(tmp_path)
        assert now.state == "running"
        assert 0 <= now.clients[0].age_s < 60


@pytest.mark.parametrize(("umask", "others"), [(0o077, 0o077), (0o022, 0o022)])
def test_outputs_obey_the_umask_and_nothing_is_executable(umask: int, others: int, tmp_path: Path) -> None:
    slide = tmp_path / "white.png"
    Image.new("RGB", (300, 300), "white").save(slide)
    before = os.umask(umask)
    try:
        assert run_here("segment", slide, "--mpp", "0.25", "--out", tmp_path / "out").exit_code == 0
    finally:
        os.umask(before)
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & others, f"{path}: {mode:o}"
        assert path.is_dir() or not mode & 0o111, f"{path}: {mode:o}"


def test_a_slide_may_be_a_link_and_is_never_written_to(tmp_path: Path) -> None:
    store, links = tmp_path / "store", tmp_path / "links"
    store.mkdir()
    links.mkdir()
    Image.new("RGB", (300, 300), "white").save(store / "blob.png")
    (links / "TCGA-01.png").symlink_to(store / "blob.png")
    (links / "dangling.png").symlink_to(store / "gone.png")
    (store / "blob.png").chmod(0o444)
    before = (store / "blob.png").stat().st_mtime_ns
    done = run_here("segment", links, "--mpp", "0.25", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out/nuclei/TCGA-01.parquet").is_file()
    assert (store / "blob.png").stat().st_mtime_ns == before
    assert os.listdir(store) == ["blob.png"]


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    from wsiseg.config import PredictConfig
    from wsiseg.predict import load_model, weights_path

    source = weights_path("default")
    for ending in (".safetensors", ".json"):
        shutil.copyfile(source.with_suffix(ending), tmp_path / f"w{ending}")
    data = bytearray((tmp_path / "w.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match="sha256"):
        load_model(PredictConfig(weights=str(tmp_path / "w.safetensors")), "cpu")
    (tmp_path / "w.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(WsisegError, match="safetensors"):
        load_model(PredictConfig(weights=str(tmp_path / "w.pt")), "cpu")


def test_the_review_page_is_for_this_machine_only() -> None:
    from wsiseg.cli.commands_qc import qc
    from wsiseg.qc.review import serve

    source = inspect.getsource(serve)
    assert set(re.findall(r"\.bind\(\((.*?),", source)) == {'"127.0.0.1"'}
    options = {o for command in qc.commands.values() for p in command.params for o in p.opts}
    assert not {"--host", "--bind", "--listen"} & options, "the page must not be offered to a network"


def test_what_must_be_checked_before_a_release_is_written_down() -> None:
    checklist = (ROOT / "scripts/RELEASE.md").read_text(encoding="utf-8")
    for words in ("pip-audit", "sha256", "fuzz.py", "faults.py", "licence", "verify"):
        assert words in checklist
