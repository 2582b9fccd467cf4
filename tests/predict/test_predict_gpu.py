"""A GPU made ready, with PyTorch's functions for GPUs replaced: what is set, in which order, and in which precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import wsiseg.backend.dlpack as dlpack
import wsiseg.predict.gpu as gpu
from wsiseg.config import PredictConfig
from wsiseg.errors import BackendUnavailableError
from wsiseg.predict import load_model, resolve_precision


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_bf16_is_chosen_only_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    """PyTorch also reports support on a V100 or T4, which emulate it slowly, unless emulation is excluded."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert resolve_precision("auto", "cuda:0") == expected
    with pytest.raises(BackendUnavailableError, match="int8 runs on the CPU only"):
        resolve_precision("int8", "cuda")


def test_a_gpu_is_bounded_made_repeatable_and_waited_for_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are copied on the default stream, for which the turns' streams do not wait by themselves."""
    done: list[Any] = []
    for name in ("deterministic", "benchmark", "allow_tf32"):
        monkeypatch.setattr(torch.backends.cudnn, name, name != "deterministic")
    monkeypatch.setattr(gpu, "cuda_obstacle", lambda: "")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (6 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda number: 2 * 2**30)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda number: done.append("waited"))
    monkeypatch.setattr(dlpack, "share_pool", lambda number, most: done.append(("bounded", number, most)))
    monkeypatch.setattr(dlpack, "streams", lambda number, n: done.append(("streams", number)) or ["stream"] * n)

    def loaded(config: PredictConfig, device: str) -> Any:
        done.append(("loaded", device))
        cudnn = torch.backends.cudnn
        assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32) == (True, False, False)
        return load_model(config, "cpu")

    monkeypatch.setattr(gpu, "load_model", loaded)
    model, streams = gpu.ready_device(PredictConfig(precision="fp32"), "cuda:1", 0.5, 1024)
    assert done == [("bounded", 1, 4 * 2**30), ("loaded", "cuda:1"), "waited", ("streams", 1)]
    assert 1 <= len(streams) <= 3
    assert model.window.side_wpx == 1024, "one size: the tile's"
