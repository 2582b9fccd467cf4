"""Every name and keyword of CuPy that the package uses is one that a released CuPy has; no GPU is needed to know."""

from __future__ import annotations

import importlib.util
import inspect
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels import cupy_names


def test_the_list_that_was_checked_is_what_the_source_uses() -> None:
    listed = json.loads(cupy_names.LIST.read_text(encoding="utf-8"))
    assert listed["names"] == cupy_names.used(), "python -m tests.kernels.cupy_names, with CuPy installed, checks and writes it"
    assert set(listed["checked_with"]) == {"cupy-cuda12x", "cupy-cuda13x"}


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_the_installed_cupy_has_them() -> None:
    assert cupy_names.missing(cupy_names.used()) == []


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_a_wrong_name_or_keyword_is_found() -> None:
    wrong = {"cuda.Evnt": [], "ndarray.get": ["output"], "cumsum": ["dtyp"], "empty": ["order"]}
    assert cupy_names.missing(wrong) == ["cuda.Evnt", "ndarray.get(output=)", "cumsum(dtyp=)"]


def test_names_are_found_however_the_module_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "some.py"
    text = """
        def f(self, a):
            cuda = _cupy().cuda
            cuda.set_one(limit=1)
            self._cupy.two(a, dtype=int)
            array_namespace(a).three
            xp.take(xp.four.five(a), axis=0)
            other.six(a)
    """
    source.write_text(textwrap.dedent(text))
    monkeypatch.setattr(cupy_names, "SOURCES", (source,))
    monkeypatch.setattr(cupy_names, "OBJECTS", {})
    found = {"cuda": [], "cuda.set_one": ["limit"], "two": ["dtype"], "three": [], "take": ["axis"], "four.five": []}
    assert cupy_names.used() == found


TORCH_CALLS = [
    (torch.cuda.caching_allocator_alloc, (512, 0, None), {}),
    (torch.cuda.caching_allocator_delete, (1,), {}),
    (torch.cuda.set_per_process_memory_fraction, (0.5, 0), {}),
    (torch.cuda.graph, (None,), {"stream": None, "capture_error_mode": "thread_local"}),
    (torch.cuda.get_device_properties, (0,), {}),
    (torch.cuda.mem_get_info, (0,), {}),
    (torch.cuda.current_stream, (0,), {}),
    (torch.cuda.stream, (None,), {}),
    (torch.cuda.is_bf16_supported, (), {"including_emulation": False}),
    (torch.cuda.memory_allocated, (0,), {}),
    (torch.cuda.memory_reserved, (0,), {}),
    (torch.cuda.max_memory_reserved, (0,), {}),
    (torch.cuda.synchronize, (0,), {}),
    (torch.cuda.get_device_name, ("cuda:0",), {}),
]


@pytest.mark.parametrize(("function", "args", "keywords"), TORCH_CALLS, ids=lambda value: getattr(value, "__name__", ""))
def test_pytorch_takes_what_it_is_given(function: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """The build for the CPU has these functions too; their arguments are those of the build with CUDA."""
    inspect.signature(function).bind(*args, **keywords)
