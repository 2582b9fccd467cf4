"""Tissue masks that the user brings: PNG (HistoQC and others) and GeoJSON (QuPath, TRIDENT)."""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.errors import FormatError
from wsiseg.read.tissue import MAX_SIDE_PX, THUMBNAIL_UM, TissueMask
from wsiseg.types import SlideMeta

__all__ = ["tissue_from_file"]

_PNG = b"\x89PNG\r\n\x1a\n"
_GZIP = b"\x1f\x8b"


def tissue_from_file(path: str | Path, meta: SlideMeta) -> TissueMask:
    """Read a tissue mask for a slide.

    Parameters
    ----------
    path
        PNG of any size (nonzero = tissue), stretched over the slide, unless wsiseg wrote it; or GeoJSON (``.gz`` too) with
        polygons in level-0 px: a FeatureCollection, a list of features, one feature, or a bare geometry.
    meta
        The slide that the mask belongs to.

    Raises
    ------
    FormatError
        Neither; a mask of another slide, by its size; or a GeoJSON without polygons, or wholly outside the slide.
    """
    try:
        data = Path(path).read_bytes()
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
    except (OSError, EOFError) as err:
        raise FormatError(f"tissue mask {path}: cannot be read: {err}") from err
    if data.startswith(_PNG):
        return _from_png(data, path, meta)
    return _from_geojson(data, path, meta)


def _from_png(data: bytes, path: str | Path, meta: SlideMeta) -> TissueMask:
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
    aspect = (w / h) / (meta.width_px / meta.height_px)
    # Thumbnail sides are rounded to whole px, so a small mask's aspect is off by up to a px on each side.
    if abs(math.log(aspect)) > 0.05 + 1 / w + 1 / h:
        raise FormatError(
            f"tissue mask {path}: {w} x {h} px, but slide {meta.slide_id} is {meta.width_px} x {meta.height_px} px: "
            "expected the same aspect ratio, because the mask is stretched over the whole slide. "
            "Is it another slide's mask, or a crop?"
        )
    return TissueMask(found.astype(np.uint8), meta.width_px / w, meta.height_px / h)


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


def _from_geojson(data: bytes, path: str | Path, meta: SlideMeta) -> TissueMask:
    try:
        tree = json.loads(data)
    except (ValueError, UnicodeDecodeError) as err:
        raise FormatError(f"tissue mask {path}: expected a PNG or GeoJSON file, got neither: {err}") from err
    px = max(1.0, THUMBNAIL_UM / meta.mpp, max(meta.width_px, meta.height_px) / MAX_SIDE_PX)
    h, w = math.ceil(meta.height_px / px), math.ceil(meta.width_px / px)
    mask = np.zeros((h, w), np.uint8)
    n = 0
    for rings in _polygons(tree, path):
        n += 1
        _fill(mask, [np.asarray(ring, np.float64) / px for ring in rings])
    if n == 0:
        raise FormatError(
            f"tissue mask {path}: GeoJSON without any Polygon or MultiPolygon. Expected tissue outlines in level-0 px."
        )
    if not mask.any():
        raise FormatError(
            f"tissue mask {path}: its {n} polygons lie outside slide {meta.slide_id} ({meta.width_px} x {meta.height_px} px). "
            "Expected coordinates in level-0 px."
        )
    return TissueMask(mask, px, px)


def _polygons(node: Any, path: str | Path) -> Iterator[list[list[list[float]]]]:
    """Yield every polygon of a GeoJSON tree as its rings, exterior first."""
    if isinstance(node, list):
        for item in node:
            yield from _polygons(item, path)
        return
    if not isinstance(node, dict) or "type" not in node:
        raise FormatError(f"tissue mask {path}: expected GeoJSON objects with a 'type', got {type(node).__name__}.")
    kind = node["type"]
    try:
        if kind == "FeatureCollection":
            yield from _polygons(node["features"], path)
        elif kind == "Feature":
            if node["geometry"] is not None:
                yield from _polygons(node["geometry"], path)
        elif kind == "GeometryCollection":
            yield from _polygons(node["geometries"], path)
        elif kind in ("Polygon", "MultiPolygon"):
            for rings in [node["coordinates"]] if kind == "Polygon" else node["coordinates"]:
                if any(np.asarray(ring, np.float64).ndim != 2 or len(ring) < 3 for ring in rings) or not rings:
                    raise ValueError("a ring needs at least 3 points (x, y)")
                yield [[point[:2] for point in ring] for ring in rings]
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, IndexError) as err:
        raise FormatError(f"tissue mask {path}: a {kind} is not valid GeoJSON: {err!r}") from err


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
