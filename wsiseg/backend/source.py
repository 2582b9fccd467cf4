"""Find the kernels' source files and join them to one translation unit."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from wsiseg.errors import BackendUnavailableError

__all__ = ["KERNEL_FILES", "NVRTC_OPTIONS", "kernel_folder", "kernel_source"]

KERNEL_FILES = ("grid.h", "label.cu", "watershed.cu", "measure.cu", "contour.cu", "stain.cu")
NVRTC_OPTIONS = ("--std=c++17", "--fmad=false")


@cache
def kernel_folder() -> Path:
    """Return the folder of the ``.cu`` files: inside the installed package, or next to it in a source tree.

    Raises
    ------
    BackendUnavailableError
        Neither folder exists.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "kernels", package.parent / "kernels"):
        if (folder / KERNEL_FILES[0]).is_file():
            return folder
    raise BackendUnavailableError(f"The kernels (grid.h and *.cu) are missing from {package / 'kernels'}: reinstall wsiseg.")


@cache
def kernel_source() -> str:
    """Return all kernels as one text without includes, as NVRTC compiles it; ``#line`` keeps messages readable."""
    parts = []
    for name in KERNEL_FILES:
        text = (kernel_folder() / name).read_text(encoding="utf-8")
        parts.append(f'#line 1 "{name}"\n' + text.replace('#include "grid.h"', ""))
    return "\n".join(parts)
