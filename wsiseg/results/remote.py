"""Find the slides at addresses given on the command line, and select the files of a DICOM series that a run needs."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from wsiseg.errors import InputError
from wsiseg.fetch import list_address, shown
from wsiseg.fetch.address import name_in
from wsiseg.read.dicom import dicom_header
from wsiseg.read.levels import needed_levels
from wsiseg.results.listing import SLIDE_SUFFIXES, Skipped
from wsiseg.results.naming import Listed
from wsiseg.results.remote_manifests import slide_name
from wsiseg.results.slide_input import SlideInput

__all__ = ["level_chooser", "slides_at"]


def slides_at(address: str, skipped: list[Skipped], *, cohort: str = "", mpp: float | None = None) -> list[SlideInput | Listed]:
    """Return the slides at an address: the object itself, or the slides in a bucket's folder (``.../``) or of a pattern.

    The instances of a DICOM series in one folder are one slide. Other objects are added to ``skipped``.

    Raises
    ------
    FetchError
        The address cannot be listed.
    InputError
        There is no slide at the address.
    """
    path = urlsplit(address).path
    web = urlsplit(address).scheme in ("http", "https")
    if not path.endswith("/") and (web or not glob.has_magic(path)):
        return [SlideInput(slide_name(name_in(address)), address, cohort, mpp)]
    base = address.removesuffix("*") if address.endswith("/*") else address
    out: list[SlideInput | Listed] = []
    series: dict[str, int] = {}
    for one in list_address(base):
        name = name_in(one.address)
        folder, _, _ = one.address.rpartition("/")
        if name.lower().endswith(".dcm"):
            series[f"{folder}/"] = series.get(f"{folder}/", 0) + one.size_bytes
        elif os.path.splitext(name)[1].lower() in SLIDE_SUFFIXES:
            slide = SlideInput(slide_name(name), one.address, cohort, mpp, size_bytes=one.size_bytes, md5=one.md5)
            out.append(Listed(slide, Path(base)))
        else:
            skipped.append(Skipped(one.address, f"ending {os.path.splitext(name)[1] or 'none'}, no slide"))
    out += [Listed(SlideInput(slide_name(name_in(f)), f, cohort, mpp), Path(base)) for f in sorted(series)]
    if not out:
        raise InputError(
            f"{shown(address)}: no slide below this address. Expected .dcm, or {', '.join(sorted(SLIDE_SUFFIXES))}."
        )
    return out


def level_chooser(mpp_model: float) -> Callable[[Sequence[tuple[str, bytes]]], list[str]]:
    """Return a function that selects the files of a series that a run needs, by their headers (see ``needed_levels``)."""

    def choose(headers: Sequence[tuple[str, bytes]]) -> list[str]:
        files = {name: dicom_header(name, data) for name, data in headers}
        unclear = [name for name, found in files.items() if found is None and name.lower().endswith(".dcm")]
        return needed_levels([f for f in files.values() if f is not None], mpp_model) + unclear

    return choose
