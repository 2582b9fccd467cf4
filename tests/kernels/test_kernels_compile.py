"""The same text passes NVIDIA's compilers for three generations, and keeps the kernels' contract."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kernels.host import signatures
from wsiseg.backend.source import KERNEL_FILES, NVRTC_OPTIONS, kernel_folder, kernel_source

ARCHITECTURES = (80, 90, 100)
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_makes_machine_code(architecture: int) -> None:
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    try:
        error, program = nvrtc.nvrtcCreateProgram(kernel_source().encode(), b"wsiseg.cu", 0, [], [])
    except RuntimeError as err:
        pytest.skip(f"nvidia-cuda-nvrtc is not installed: {err}")
    options = [f"--gpu-architecture=sm_{architecture}".encode(), *(o.encode() for o in NVRTC_OPTIONS)]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    code = b" " * size
    nvrtc.nvrtcGetCUBIN(program, code)
    for name in signatures():
        assert name.encode() in code


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
