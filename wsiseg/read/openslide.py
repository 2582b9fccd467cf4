"""Slides read by OpenSlide, in every format that it supports. Its pixels are the reference for all other readers."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openslide

from wsiseg.errors import SlideOpenError, TileReadError
from wsiseg.read._damage import require_plausible_size
from wsiseg.read._levels import LevelSlide, SlideFile
from wsiseg.read._mpp_text import MppClaim
from wsiseg.read._window import RGB, over_white
from wsiseg.read.dicom import dicom_folder_series, may_be_dicom, several_images
from wsiseg.read.files import slide_files
from wsiseg.read.mpp import objective_power, resolve_mpp

__all__ = ["OpenSlideSlide", "detect_vendor", "library_version"]


def library_version() -> str:
    """Return the version of the OpenSlide library itself."""
    return str(openslide.__library_version__)


def detect_vendor(path: Path) -> str | None:
    """Return OpenSlide's vendor name for a file, ``None`` if there is none (the file may still be a plain image)."""
    try:
        return openslide.OpenSlide.detect_format(str(path))
    except openslide.OpenSlideError:
        return None


class OpenSlideSlide(LevelSlide):
    """A slide read by OpenSlide, with its own bounded tile cache. Threads may read it at the same time.

    At a level whose downsample is no whole number, OpenSlide rounds positions to level-0 px, so pixels may be blended over up
    to half a level-0 px; working pixels are therefore never taken from such a level.

    Parameters
    ----------
    file
        The slide.
    claims, layout
        Statements of um per px found in texts of the file, and a description of how its pixels are stored.

    Raises
    ------
    SlideOpenError, MissingMppError, ImplausibleMppError, AnisotropicMppError
    """

    def __init__(self, file: SlideFile, *, claims: Sequence[MppClaim] = (), layout: str = "") -> None:
        self._cache_bytes = file.cache_bytes
        self._replacing = threading.Lock()
        self._path, self._handle = _open_any(file.path)
        handle = self._handle
        self.level_sizes_px: tuple[tuple[int, int], ...] = tuple(handle.level_dimensions)
        width_px, height_px = handle.dimensions
        props = dict(handle.properties)
        try:
            tile_px = max(
                int(props.get(f"openslide.level[{k}].tile-width", 0)) * int(props.get(f"openslide.level[{k}].tile-height", 0))
                for k in range(len(self.level_sizes_px))
            )
            require_plausible_size(width_px, height_px, f"slide {file.path}", tile_px)
        except ValueError:
            handle.close()
            raise
        vendor = props.get("openslide.vendor", "")
        try:
            found = resolve_mpp(props, user_mpp=file.mpp, vendor=vendor, where=f"slide {file.path}", claims=claims)
        except ValueError:
            handle.close()
            raise
        self.meta = dataclasses.replace(
            file.meta((width_px, height_px), found),
            layout=layout,
            bounds_x=int(props.get("openslide.bounds-x", 0)),
            bounds_y=int(props.get("openslide.bounds-y", 0)),
            bounds_w=int(props.get("openslide.bounds-width", 0)),
            bounds_h=int(props.get("openslide.bounds-height", 0)),
            level_downsamples=tuple(float(d) for d in handle.level_downsamples),
            vendor=vendor,
            objective_power=objective_power(props),
            reader="openslide",
        )
        handle.set_cache(openslide.OpenSlideCache(file.cache_bytes))

    def _read_inside(self, level: int, x: int, y: int, w: int, h: int) -> RGB:
        downsample = self.meta.level_downsamples[level]
        window = (round(x * downsample), round(y * downsample)), level, (w, h)
        handle = self._handle
        try:
            return over_white(np.asarray(handle.read_region(*window)))
        except openslide.OpenSlideError:
            self._replace(handle)
        # A handle that has failed once answers every later call with the same error. Where threads share it, the error may be
        # that of another thread's window, so this window is read again by a handle that no other thread has.
        try:
            return over_white(np.asarray(self._opened().read_region(*window)))
        except openslide.OpenSlideError as err:
            raise TileReadError(
                f"slide {self.meta.slide_id} ({self.meta.path}): window x={x} y={y} w={w} h={h} of level {level} cannot be "
                f"decoded: {err}. The file is damaged there; copy it again from its source if you can."
            ) from err

    def _replace(self, failed: openslide.OpenSlide) -> None:
        """Replace a failed handle by a new one, unless another thread has done so."""
        with self._replacing:
            if self._handle is failed:
                # The failed handle is not closed here: other threads may be reading with it, and closing would free the memory
                # that they use. It closes itself when no thread refers to it.
                self._handle = self._opened()

    def _opened(self) -> openslide.OpenSlide:
        try:
            handle = openslide.OpenSlide(self._path)
        except (openslide.OpenSlideError, OSError) as err:
            raise TileReadError(f"slide {self.meta.slide_id} ({self.meta.path}): cannot be opened again: {err}") from err
        handle.set_cache(openslide.OpenSlideCache(self._cache_bytes))
        return handle

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def _open_any(path: Path) -> tuple[str, openslide.OpenSlide]:
    """Open a file, or the first file of a DICOM folder that OpenSlide can open (it finds the others of the series)."""
    files = _files_to_try(path) if path.is_dir() else [str(path)]
    if path.is_dir() or may_be_dicom(path.name):
        _refuse_several_images(path)
    reason: Exception | str = "the folder contains no .dcm file"
    for file in files:
        try:
            return file, openslide.OpenSlide(file)
        except (openslide.OpenSlideError, OSError) as err:
            reason = err
    raise SlideOpenError(f"{path}: OpenSlide cannot open it: {reason}. Expected a whole-slide image; is the file complete?")


def _refuse_several_images(path: Path) -> None:
    """Refuse a DICOM slide of several optical paths or focal planes: the user must choose which of them to segment."""
    for file in slide_files(path):
        if several := several_images(file):
            raise SlideOpenError(
                f"{path}: {file.name} contains {several}, expected one H&E image. Write that one as a separate series."
            )


def _files_to_try(folder: Path) -> list[str]:
    """Return the files by which a folder's one DICOM series may be opened: its levels, else all files ending in .dcm."""
    series = dicom_folder_series(folder)
    if len(series) > 1:
        names = ", ".join(sorted(os.path.basename(files[0].path) for files in series.values())[:5])
        raise SlideOpenError(
            f"{folder}: expected one DICOM series, got {len(series)}. Name one file of the series you mean, such as {names}; "
            "segment and plan take the folder and all its series."
        )
    levels = [f.path for files in series.values() for f in files if f.is_volume]
    return levels or [str(folder / name) for name in sorted(os.listdir(folder)) if name.lower().endswith(".dcm")]
