"""Processors: int8 gives the same bits on all of them, a processor that does not is found out, and caps are believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsiseg.errors import BackendUnavailableError
from wsiseg.predict import machine, quantize, resolve_precision

ROOT = Path(__file__).resolve().parents[2]
CAPS = (
    {},
    {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
)
ASK = """
import json, sys
import torch
from wsiseg.config import PredictConfig
from wsiseg.predict import arithmetic_of, load_model, quantize
from wsiseg.predict.machine import cpu_has
found = {"exact": quantize.sums_are_exact()}
for precision in ("int8", "fp32", "bf16"):
    for threads in (1, 2):
        torch.set_num_threads(threads)
        model = load_model(PredictConfig(weights="open", precision=precision, engine="eager"))
        found[f"{precision} {threads}"] = arithmetic_of(model).digest
quantize.sums_are_exact.cache_clear()
quantize.KERNEL_MAX = 127
found["exact with 8 bits"] = quantize.sums_are_exact()
found["vnni"] = cpu_has("vnni")
print(json.dumps(found))
"""

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.onednn, "qconv2d_pointwise"), reason="this torch has no int8 convolution")


@pytest.fixture(scope="module")
def asked() -> list[dict[str, Any]]:
    """What processes find that may use less and less of this processor."""
    found = []
    for caps in CAPS:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **caps}
        done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    return found


def test_int8_maps_are_equal_on_every_processor(asked: list[dict[str, Any]]) -> None:
    assert len({found[f"int8 {threads}"] for found in asked for threads in (1, 2)}) == 1
    assert all(found["exact"] for found in asked)


def test_fp32_and_bf16_maps_do_not_depend_on_threads(asked: list[dict[str, Any]]) -> None:
    for found in asked:
        assert found["fp32 1"] == found["fp32 2"]
        assert found["bf16 1"] == found["bf16 2"]
    assert asked[0]["fp32 1"] != asked[0]["bf16 1"] != asked[0]["int8 1"], "the digest sees another arithmetic"


@pytest.mark.skipif(not machine.cpu_has("avx2"), reason="oneDNN adds no pairs in 16 bits here")
def test_kernels_of_eight_bits_are_found_out(asked: list[dict[str, Any]]) -> None:
    """Without VNNI pairs of products are added in 16 bits: the probe must see that, or it would see nothing."""
    for found in asked[1:]:
        assert not found["vnni"]
        assert not found["exact with 8 bits"]


def test_a_processor_that_rounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "sums_are_exact", lambda: False)
    monkeypatch.setattr(machine, "cpu_has", lambda feature: True)
    with pytest.raises(BackendUnavailableError, match="rounds its sums"):
        resolve_precision("int8", "cpu", int8=True)
    assert resolve_precision("auto", "cpu", int8=True) == "bf16"


@pytest.mark.parametrize(
    ("cap", "expected"),
    [
        ("", "avx2 avx512 vnni bf16 amx"),
        ("DEFAULT", "avx2 avx512 vnni bf16 amx"),
        ("AVX512_CORE_AMX", "avx2 avx512 vnni bf16 amx"),
        ("avx512_core_bf16", "avx2 avx512 vnni bf16"),
        ("AVX512_CORE_VNNI", "avx2 avx512 vnni"),
        ("AVX512_CORE", "avx2 avx512"),
        ("AVX2_VNNI", "avx2 vnni"),
        ("AVX2", "avx2"),
        ("SSE41", ""),
    ],
)
def test_caps_are_respected(cap: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for probe in ("avx2", "avx512", "vnni", "avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{probe}_supported", lambda: True, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    found = [f for f in ("avx2", "avx512", "vnni", "bf16", "amx") if machine.cpu_has(f)]  # type: ignore[arg-type]
    assert " ".join(found) == expected


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (7, 12, 1, 1), (1, 1, 3, 3)])
def test_errors_of_a_rounded_kernel_cancel(shape: tuple[int, ...]) -> None:
    kernel = (np.random.default_rng(3).random(shape) * 2 - 1) * quantize.KERNEL_MAX
    whole = quantize.whole_kernel(torch.from_numpy(kernel)).numpy().astype(np.int64)
    error = whole - kernel
    assert np.abs(whole).max() <= quantize.KERNEL_MAX
    assert np.abs(error).max() <= 1
    assert np.abs(error.sum((1, 2, 3))).max() <= 0.5 + 1e-6
    assert np.abs(error.sum((2, 3))).max() <= 1.5 + 1e-6
    assert np.abs((np.rint(kernel) - kernel).sum((1, 2, 3))).max() > 0.5 or shape[0] == 1, "plain rounding does not"


def test_whole_kernels_stay_as_they_are() -> None:
    kernel = torch.randint(-64, 65, (4, 8, 3, 3), generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantize.whole_kernel(kernel.float()), kernel.to(torch.int8))
