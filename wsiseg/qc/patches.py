"""Draw random patches from a slide's tissue mask for grading, name them, and store their pictures.

Hou et al. (2020) graded 15 patches per slide, of 256 px at 40x (64 um). Positions are drawn uniformly over the segmented tissue
by a random generator that is seeded by the slide id only, so that a second run, another machine or a later ``--more`` finds the
same patches. Patch names are hashes and patches are reviewed in the order of their names, mixed over all slides: the reviewer
cannot see which slide a patch is from.

Pictures: the ZIP archive ``RUN/qc/patches/<slide_id>.zip`` (not compressed) holds ``<patch_id>.png``, the tissue at 256 px, and
``<patch_id>.contours.png``, a transparent layer with the contours at three times that size, so that lines stay thin when the
page zooms in. One archive per slide keeps the number of files small for cohorts of thousands of slides.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsiseg.errors import ConfigError, FormatError, InputError
from wsiseg.read import TissueMask
from wsiseg.tables import atomic_path
from wsiseg.types import Box

__all__ = [
    "LAYER_ZOOM",
    "PATCH_MPP",
    "PATCH_PX",
    "Patch",
    "contour_png",
    "inner_mask",
    "patch_id",
    "read_picture",
    "rgb_png",
    "sample_patches",
    "write_pack",
]

PATCH_PX = 256
PATCH_MPP = 0.25
"""40x."""
PATCHES_PER_SLIDE = 15
LAYER_ZOOM = 3
CONTOUR_RGB = (0, 230, 118)
CONTOUR_HALO_RGB = (0, 40, 20)
"""A light green line on top of a wider dark one is visible on hematoxylin, eosin and glass, in color and in gray."""

_OVERLAP_TRIES = 64


@dataclass(frozen=True, slots=True)
class Patch:
    """A random patch: its number in the slide's random sequence (from 0) and its box in level-0 px."""

    number: int
    box: Box


def patch_id(run_digest: str, slide_id: str, number: int) -> str:
    """Return the blinded name of a patch: 16 hex digits."""
    return hashlib.sha256(f"{run_digest}\n{slide_id}\n{number}".encode()).hexdigest()[:16]


def sample_patches(
    slide_id: str,
    tissue: TissueMask,
    slide_size_px: tuple[int, int],
    side_px: int,
    n: int,
    *,
    seed: int = 0,
    excluded: Sequence[Box] = (),
) -> list[Patch]:
    """Draw patches whose centers are uniform over the segmented tissue.

    Parameters
    ----------
    tissue
        Positions allowed for centers.
    slide_size_px
        (width, height), level-0 px. A patch that would extend beyond the slide is shifted inside it.
    side_px
        Side of a patch, level-0 px.
    seed
        Another seed gives another, independent sample.
    excluded
        Level-0 boxes that were not segmented (failed tiles). No patch has its center in them.

    Returns
    -------
    list of Patch
        The first k patches are the same for every ``n >= k``. A patch overlaps an earlier one only if 64 draws gave no position
        without overlap. Empty if the mask has no tissue.

    Raises
    ------
    ConfigError
        ``n`` or ``side_px`` is not positive.
    """
    if n < 1 or side_px < 1:
        raise ConfigError(f"Expected at least one patch of at least 1 px, got n = {n}, side_px = {side_px}.")
    key = hashlib.sha256(f"wsiseg patches {seed}\n{slide_id}".encode()).digest()
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
    flat = np.flatnonzero(tissue.mask)
    patches: list[Patch] = []
    while flat.size and len(patches) < n:
        box = _draw(random, flat, tissue, slide_size_px, side_px, excluded)
        for _ in range(_OVERLAP_TRIES):
            if box is None or not any(_overlap(box, p.box) for p in patches):
                break
            box = _draw(random, flat, tissue, slide_size_px, side_px, excluded)
        if box is None:
            break
        patches.append(Patch(len(patches), box))
    return patches


def inner_mask(mask: npt.NDArray[np.uint8], px_w: float, px_h: float, margin_px: float) -> npt.NDArray[np.uint8]:
    """Return the part of a mask that is at least a margin away from its border; the whole mask if no part is.

    A tissue mask is enlarged by a margin so that no nucleus at its border is lost. Random patches should not show the glass in
    that margin.

    Parameters
    ----------
    mask : uint8 (h, w)
        1 where there is tissue. The edge of the slide does not count as a border of the tissue.
    px_w, px_h
        Level-0 px per mask px.
    margin_px
        The margin, level-0 px.
    """
    from scipy import ndimage

    if not mask.any() or mask.all():
        return mask
    deep = ndimage.distance_transform_edt(mask, sampling=(px_h, px_w)) > margin_px
    return deep.astype(np.uint8) if deep.any() else mask


def _draw(
    random: np.random.Generator,
    flat: npt.NDArray[np.int64],
    tissue: TissueMask,
    slide_size_px: tuple[int, int],
    side_px: int,
    excluded: Sequence[Box],
) -> Box | None:
    """Return one random box, or None if 10,000 draws hit no segmented tissue."""
    for _ in range(10_000):
        row, column = divmod(int(flat[random.integers(flat.size)]), tissue.mask.shape[1])
        dx, dy = random.random(2)
        x, y = tissue.x0 + (column + dx) * tissue.px_w, tissue.y0 + (row + dy) * tissue.px_h
        if not (0 <= x < slide_size_px[0] and 0 <= y < slide_size_px[1]):
            continue
        if any(b.x <= x < b.x1 and b.y <= y < b.y1 for b in excluded):
            continue
        left = min(max(int(x - side_px / 2), 0), max(slide_size_px[0] - side_px, 0))
        top = min(max(int(y - side_px / 2), 0), max(slide_size_px[1] - side_px, 0))
        return Box(left, top, side_px, side_px)
    return None


def _overlap(a: Box, b: Box) -> bool:
    return a.x < b.x1 and b.x < a.x1 and a.y < b.y1 and b.y < a.y1


def rgb_png(rgb: npt.NDArray[np.uint8]) -> bytes:
    """Return uint8 (H, W, 3) as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def contour_png(
    xy: npt.NDArray[np.float64], ring_offsets: npt.NDArray[np.int64], origin_px: tuple[float, float], zoom: float, side_px: int
) -> bytes:
    """Return contours as a PNG of ``side_px`` by ``side_px`` px on a transparent background.

    Parameters
    ----------
    xy : float64 (V, 2)
        Vertices of all rings, one ring after the other, in any frame of coordinates.
    ring_offsets : int64 (N + 1,)
        Ring k is ``xy[ring_offsets[k]:ring_offsets[k + 1]]``.
    origin_px
        (x, y) of the picture's top-left corner, in the frame of ``xy``.
    zoom
        Picture px per unit of ``xy``.
    """
    from PIL import Image, ImageDraw

    image = Image.new("P", (side_px, side_px), 0)
    image.putpalette([0, 0, 0, *CONTOUR_HALO_RGB, *CONTOUR_RGB])
    draw = ImageDraw.Draw(image)
    points = (xy - np.asarray(origin_px, np.float64)) * zoom
    rings = [points[a:b].ravel().tolist() for a, b in pairwise(ring_offsets.tolist())]
    for ink, width in ((1, 4), (2, 2)):
        for ring in rings:
            draw.line(ring, fill=ink, width=width, joint="curve")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0, optimize=False)
    return buffer.getvalue()


def write_pack(path: Path, pictures: Iterable[tuple[str, bytes]]) -> None:
    """Write named pictures as one ZIP, complete or not at all; the same pictures give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as pack:
        for name, data in pictures:
            pack.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)


def pack_names(path: Path) -> set[str]:
    """Return the names in a ZIP of pictures; an empty set if the file is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as pack:
            return set(pack.namelist())
    except (OSError, zipfile.BadZipFile):
        return set()


def read_picture(qc_folder: Path, file: str, name: str) -> bytes:
    """Return one picture, as PNG bytes, from a ZIP of pictures.

    Parameters
    ----------
    qc_folder
        ``RUN/qc``.
    file
        Path of the ZIP, relative to ``qc_folder``, as in the patch index.
    name
        Name of the picture in the ZIP.

    Raises
    ------
    InputError
        The ZIP is missing, is outside the run's qc folder, or does not contain the picture.
    FormatError
        The ZIP is damaged.
    """
    path = (qc_folder / file).resolve()
    if not path.is_relative_to(qc_folder.resolve()):
        raise InputError(
            f"The patch index refers to {file!r}, which is outside {qc_folder}, so it does not belong to this run. "
            "Run `wsiseg qc patches` again."
        )
    try:
        with zipfile.ZipFile(path) as pack:
            return pack.read(name)
    except KeyError as err:
        raise InputError(f"{path} does not contain the picture {name}. Run `wsiseg qc patches` again.") from err
    except FileNotFoundError as err:
        raise InputError(f"The pictures of patches, {path}, are missing. Run `wsiseg qc patches` again.") from err
    except (OSError, zipfile.BadZipFile) as err:
        raise FormatError(
            f"The pictures of patches, {path}, are damaged ({err}). Remove the file and run `wsiseg qc patches` again."
        ) from err
