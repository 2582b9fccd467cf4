"""The code that is chosen for an array, and the messages on a machine without a GPU."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from tests.kernels.host import signatures
from wsiseg.backend import backend_of, blocks_for, blocks_over, to_device
from wsiseg.backend.source import kernel_folder, kernel_source
from wsiseg.errors import BackendUnavailableError


def test_host_arrays_stay_on_the_host() -> None:
    array = np.zeros((2, 3), np.uint8)
    assert backend_of(array) is None
    assert to_device(array, "cpu") is array


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_missing_cupy_is_named_with_its_remedy() -> None:
    from wsiseg.backend.cuda import cuda_report

    usable, text = cuda_report()
    assert not usable
    assert "pip install 'wsiseg[gpu]'" in text
    with pytest.raises(BackendUnavailableError, match="CuPy is not installed"):
        to_device(np.zeros(1), "cuda")


def test_one_text_without_includes() -> None:
    text = kernel_source()
    assert "#include" not in text
    assert len(signatures()) == text.count("KERNEL ") - 1  # one is the macro itself
    assert (kernel_folder() / "README.md").is_file()


@pytest.mark.parametrize("n", [1, 255, 256, 257])
def test_grids_cover(n: int) -> None:
    assert blocks_for(n)[0] * 256 >= n > (blocks_for(n)[0] - 1) * 256
    across, down = blocks_over((n, 2 * n))
    assert across * 32 >= 2 * n
    assert down * 8 >= n
