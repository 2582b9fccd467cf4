"""Report which slide readers are installed, for ``wsiseg doctor``."""

from __future__ import annotations

import importlib.util

__all__ = ["reader_report"]


def reader_report() -> list[tuple[str, bool, str]]:
    """Return (name, usable, detail) of each reader; the detail of a missing one states its use and how to install it."""
    rows = []
    try:
        from wsiseg.read.openslide import library_version

        rows.append(("openslide", True, f"OpenSlide {library_version()}: SVS, NDPI, MRXS, DICOM, tiled TIFF and more"))
    except (ImportError, OSError) as err:
        rows.append(("openslide", False, f"not usable ({err}): install openslide-python and openslide-bin"))
    if importlib.util.find_spec("cucim") is None:
        advice = (
            "not installed, OpenSlide decodes SVS and TIFF about 5 times slower: pip install --no-deps cucim-cu13 lazy-loader"
        )
        rows.append(("cucim", False, advice))
    else:
        try:
            from wsiseg.read.cuslide import library_version as cucim_version

            rows.append(("cucim", True, f"cuCIM {cucim_version()}: fast decoding of SVS and tiled TIFF, no GPU needed"))
        except (ImportError, OSError) as err:
            rows.append(("cucim", False, f"installed but not usable ({err}): OpenSlide is used"))
    return rows
