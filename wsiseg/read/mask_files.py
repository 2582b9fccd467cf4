"""Read tissue masks given by the user: PNG (HistoQC and others) and GeoJSON (QuPath, TRIDENT)."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.coordinates import Frame, Ground, check_fit, ground_of, parse_frame
from wsiseg.errors import FormatError
from wsiseg.read.tissue import MAX_SIDE_PX, THUMBNAIL_UM, TissueMask
from wsiseg.tables.outlines import Tally, iter_outlined, with_area
from wsiseg.types import SlideMeta

__all__ = ["tissue_from_file"]

_PNG = b"\x89PNG\r\n\x1a\n"
_GZIP = b"\x1f\x8b"


def tissue_from_file(
    path: str | Path, meta: SlideMeta, frame: str = "auto", on_note: Callable[[str], None] = lambda note: None
) -> TissueMask:
    """Read a tissue mask for a slide.

    Parameters
    ----------
    path
        PNG of any size (nonzero = tissue), stretched over the slide (in the frame ``bounds``: over its scanned area), unless
        wsiseg wrote it; or GeoJSON, also zipped (``wsiseg.tables.outlines``), whose polygons are tissue.
    meta
        The slide that the mask belongs to.
    frame
        The frame of the mask's coordinates (``wsiseg.coordinates``).
    on_note
        Called with each line about parts of the file that were left out or do not fit the slide.

    Raises
    ------
    FormatError
        The file is neither PNG nor GeoJSON, its size is another slide's, or its GeoJSON has no polygons on the scanned area.
    InputError
        ``frame`` is not a valid frame.
    """
    where = parse_frame(frame)
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(len(_PNG))
            is_png = data == _PNG
            if data.startswith(_GZIP):
                stream.seek(0)
                with gzip.GzipFile(fileobj=stream) as unpacked:
                    is_png = unpacked.read(len(_PNG)) == _PNG
        if is_png:
            raw = Path(path).read_bytes()
            return _from_png(gzip.decompress(raw) if raw.startswith(_GZIP) else raw, path, meta, where)
    except (OSError, EOFError, zlib.error) as err:
        raise FormatError(f"tissue mask {path}: cannot be read: {err}") from err
    return _from_geojson(Path(path), meta, where, on_note)


def _from_png(data: bytes, path: str | Path, meta: SlideMeta, frame: Frame) -> TissueMask:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if any(str(key).startswith("wsiseg:") for key in image.info):
                return _own_mask(TissueMask.load(data), path, meta)
            pixels = np.asarray(image if image.mode in ("1", "L", "I", "I;16") else image.convert("RGBA"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise FormatError(f"tissue mask {path}: not a readable PNG: {err}") from err
    found = (pixels[..., :3] > 0).any(axis=2) & (pixels[..., 3] > 0) if pixels.ndim == 3 else pixels > 0
    h, w = found.shape
    scanned = (meta.bounds_w, meta.bounds_h) if min(meta.bounds_w, meta.bounds_h) > 0 else (meta.width_px, meta.height_px)
    width, height = scanned if frame.origin == "bounds" else (meta.width_px, meta.height_px)
    if not _same_aspect((w, h), (width, height)):
        scanned_too = frame.origin != "bounds" and scanned != (width, height) and _same_aspect((w, h), scanned)
        raise FormatError(
            f"tissue mask {path}: {w} x {h} px, but slide {meta.slide_id} is {width} x {height} px: "
            "expected the same aspect ratio, because the mask is stretched over the whole slide. "
            + (
                f"It has that of the scanned area, {scanned[0]} x {scanned[1]} px: if it covers that, use --frame bounds."
                if scanned_too
                else "Is it another slide's mask, or a crop?"
            )
        )
    x0, y0 = (meta.bounds_x, meta.bounds_y) if frame.origin == "bounds" else (0, 0)
    return TissueMask(found.astype(np.uint8), width / w, height / h, float(x0), float(y0))


def _same_aspect(mask: tuple[int, int], slide: tuple[int, int]) -> bool:
    """Return whether a mask has a slide's proportions; sides of thumbnails are rounded to whole px, each by up to one."""
    return abs(math.log(mask[0] / mask[1] / (slide[0] / slide[1]))) <= 0.05 + 1 / mask[0] + 1 / mask[1]


def _own_mask(tissue: TissueMask, path: str | Path, meta: SlideMeta) -> TissueMask:
    """Return a mask that wsiseg wrote, after checking that it ends where the slide does (to a mask px)."""
    h, w = tissue.mask.shape
    right, bottom = tissue.x0 + w * tissue.px_w, tissue.y0 + h * tissue.px_h
    if abs(right - meta.width_px) > tissue.px_w or abs(bottom - meta.height_px) > tissue.px_h:
        raise FormatError(
            f"tissue mask {path}: made for a slide of about {right:.0f} x {bottom:.0f} px, but slide {meta.slide_id} is "
            f"{meta.width_px} x {meta.height_px} px. Is it another slide's mask?"
        )
    return tissue


def _from_geojson(path: Path, meta: SlideMeta, frame: Frame, on_note: Callable[[str], None]) -> TissueMask:
    polygons, qupath, tally = _outlines(path)
    if not polygons:
        left_out = f" ({'; '.join(tally.lines())})" if tally.lines() else ""
        raise FormatError(
            f"tissue mask {path}: GeoJSON without any Polygon or MultiPolygon{left_out}. Expected outlines of tissue."
        )
    for line in tally.lines():
        on_note(f"tissue mask {path}: {line}")
    ground = ground_of(meta)
    factor, dx, dy = placed = frame.on(ground, "bounds" if qupath else "slide", f"tissue mask {path}")
    if frame.origin == "auto" and (dx, dy) != (0.0, 0.0):
        on_note(
            f"tissue mask {path}: coordinates are relative to the scanned area, as QuPath's are: ({dx:g}, {dy:g}) px are added "
            "(--frame slide if not)"
        )
    what = f"tissue mask {path}: corners of its {len(polygons)} polygons are outside slide {meta.slide_id}"
    corners = np.concatenate([rings[0] for rings in polygons])
    fits = _fit(corners, ground, placed, what, polygons)
    px = max(1.0, THUMBNAIL_UM / meta.mpp, max(meta.width_px, meta.height_px) / MAX_SIDE_PX)
    h, w = math.ceil(meta.height_px / px), math.ceil(meta.width_px / px)
    mask = np.zeros((h, w), np.uint8)
    for rings in polygons:
        _fill(mask, [(ring * factor + (dx, dy)) / px for ring in rings])
    left, top, right, bottom = (v / px for v in ground.area)
    scanned = mask[math.floor(top) : math.ceil(min(bottom, h)), math.floor(left) : math.ceil(min(right, w))]
    if not scanned.any():
        raise FormatError(fits or f"{what}, or its scanned area. Expected coordinates in level-0 px (--frame).")
    if fits:
        on_note(fits)
    return TissueMask(mask, px, px)


def _fit(
    corners: npt.NDArray[np.float64],
    ground: Ground,
    placed: tuple[float, float, float],
    what: str,
    polygons: list[list[npt.NDArray[np.float64]]],
) -> str:
    """Return the note about corners outside the slide; an outline of the whole slide may have all its corners there."""
    try:
        notes = check_fit(corners, ground, placed, what)
    except FormatError as err:
        notes = [str(err)]
    left, top, right, bottom = ground.area
    factor, dx, dy = placed
    low = np.min([rings[0].min(axis=0) for rings in polygons], axis=0) * factor + (dx, dy)
    high = np.max([rings[0].max(axis=0) for rings in polygons], axis=0) * factor + (dx, dy)
    around = (low <= (left, top)).all() and (high >= (right, bottom)).all()
    return "" if around or not notes else notes[0]


def _outlines(path: Path) -> tuple[list[list[npt.NDArray[np.float64]]], bool, Tally]:
    """Return the polygons of a file, whether it is QuPath's, and what was left out."""
    tally = Tally()
    facts: dict[str, Any] = {}
    polygons: list[list[npt.NDArray[np.float64]]] = []
    qupath = False
    try:
        for outlined in iter_outlined(path, tally, facts, regions=True):
            polygons += outlined.polygons
            qupath |= outlined.qupath
    except FormatError as err:
        raise FormatError(f"tissue mask {path}: not a PNG or GeoJSON file that can be read: {err}") from err
    own = facts.get("wsiseg")
    polygons = with_area(polygons, tally)
    return polygons, qupath and not (isinstance(own, dict) and own.get("frame") == "slide"), tally


def _fill(mask: np.ndarray[Any, np.dtype[np.uint8]], rings: list[Any]) -> None:
    """Add one polygon (rings in mask px; the first is the exterior) to a mask."""
    from PIL import Image, ImageDraw

    h, w = mask.shape
    x0, y0 = (max(0, math.floor(v)) for v in rings[0].min(axis=0))
    x1, y1 = (min(n, math.ceil(v) + 1) for v, n in zip(rings[0].max(axis=0), (w, h), strict=True))
    if x1 <= x0 or y1 <= y0:
        return
    canvas = Image.new("L", (x1 - x0, y1 - y0), 0)
    draw = ImageDraw.Draw(canvas)
    for k, ring in enumerate(rings):
        # Pillow's coordinates are those of px centers, ours of px corners.
        draw.polygon([(x - x0 - 0.5, y - y0 - 0.5) for x, y in ring], fill=0 if k else 1)
    mask[y0:y1, x0:x1] |= np.asarray(canvas)
