"""The same text passes NVIDIA's compilers for three generations, and keeps the kernels' contract."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import kernel_registers
from tests.kernels.host import signatures
from wsiseg.backend.source import KERNEL_FILES, kernel_folder, kernel_source

ARCHITECTURES = (80, 90, 100)
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_makes_machine_code_without_spills(architecture: int) -> None:
    """With the options that CuPy gives; registers are few enough for half of a multiprocessor's threads."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    try:
        version = kernel_registers.version()
    except RuntimeError as err:
        pytest.skip(f"nvidia-cuda-nvrtc is not installed: {err}")
    code, log = kernel_registers.compiled(architecture)
    rows = kernel_registers.table(log)
    assert set(rows) == set(signatures())
    assert all(name.encode() in code for name in rows)
    assert {name for name, row in rows.items() if row["spill_bytes"] or row["stack_bytes"]} == set()
    assert {name for name, row in rows.items() if row["threads_by_registers"] < 1024} == set()
    kept = json.loads((ROOT / "benchmarks" / "results" / "kernel_registers.json").read_text(encoding="utf-8"))
    if kept["nvrtc"] == version:
        assert kept["kernels"][f"sm_{architecture}"] == rows, "python -m benchmarks.kernel_registers writes the table anew"


def test_the_kept_table_is_of_these_kernels() -> None:
    kept = json.loads((ROOT / "benchmarks" / "results" / "kernel_registers.json").read_text(encoding="utf-8"))
    assert set(kept["kernels"]) == {f"sm_{a}" for a in ARCHITECTURES}
    for rows in kept["kernels"].values():
        assert set(rows) == set(signatures())
        assert not any(row["spill_bytes"] for row in rows.values())


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_nvcc_makes_machine_code(tmp_path: Path) -> None:
    unit, code = tmp_path / "all.cu", tmp_path / "all.fatbin"
    unit.write_text(kernel_source())
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    flags = ["-std=c++17", "--fmad=false", "-Werror=all-warnings", "-Xptxas=-warn-spills", "--fatbin", "--threads=2"]
    subprocess.run(["nvcc", *flags, *targets, str(unit), "-o", str(code)], check=True, timeout=300)
    assert code.stat().st_size > 10_000


def test_contract_of_the_text() -> None:
    """No warp intrinsics, no floating point but Reinhard's: what the host cannot model or may round differently."""
    for name in KERNEL_FILES:
        text = re.sub(r"//[^\n]*", "", (kernel_folder() / name).read_text(encoding="utf-8"))
        reinhard = text.find("KERNEL transfer_log_lms")
        floats = text[reinhard:] if reinhard >= 0 else ""
        assert not re.search(r"\bdouble\b|\w+f\(", floats), "single precision, no library functions"
        text = text if reinhard < 0 else text[:reinhard]
        assert not re.search(r"_sync\b|__shfl|__ballot|__any|__all\b|warpSize|\bfloat\b|\bdouble\b|\b\d+\.\d", text), name


def test_every_kernel_is_run_by_a_driver_and_has_a_host_case() -> None:
    names = set(signatures())
    entry = (Path(__file__).parent / "host_entry.cpp").read_text(encoding="utf-8")
    assert set(re.findall(r"CASE\((\w+), ", entry)) - {"kernel"} == names
    drivers = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "wsiseg").rglob("*.py"))
    assert set(re.findall(r'launch\(\s*"(\w+)"', drivers)) == names
