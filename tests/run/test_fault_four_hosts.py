"""Four hosts as network namespaces: blind, late, dead, of another version, a cut link; the tables are those of a local run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run.conftest import ROOT, environment

SCRIPT = ROOT / "scripts" / "cluster" / "four_hosts.py"
CROP = ("--mpp", "0.499", "--tile", "400", "--precision", "fp32", "--engine", "eager")


def lacking() -> str:
    spec = importlib.util.spec_from_file_location("four_hosts", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.obstacle())


def test_four_hosts_one_of_them_undisturbed(crop_png: Path, tmp_path: Path) -> None:
    reason = lacking()
    if reason:
        pytest.skip(reason)
    command = [sys.executable, str(SCRIPT), str(crop_png), "--work", str(tmp_path / "work"), "--", *CROP]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tables_equal"] == found["tables"] == 3
    assert found["happened"] == ["blind", "cut", "dead", "late", "other version"]
    assert not found["errors"]
    reported = (tmp_path / "work/client.log").read_text()
    assert "host blind (10.77.0.3) is excluded" in reported
    assert "Traceback" not in reported
    assert "the scheduler is lost" not in reported
