"""A slide of known size and density, made where it is needed: JPEG-compressed tissue texture with 6,000 to 10,000 nuclei a mm2.

    python -m benchmarks.synthetic_slide SLIDE.tiff [--side 12000] [--nuclei-per-mm2 8000]

A pyramidal tiled TIFF at 0.25 um/px (JPEG, 4:2:0, tiles of 512 px, levels 1, 4, 16) that OpenSlide and cuCIM read. One texture
of 4000 px (1 mm2) is mirrored and shifted from block to block, so that no two blocks are alike. Needs NumPy, SciPy and Pillow.
"""

from __future__ import annotations

import argparse
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage as ndi

from benchmarks.synthetic import synthetic_tile

BLOCK_PX = 4000
TILE_PX = 512
MPP = 0.25
QUALITY = 85
LEVELS = (1, 4, 16)
STROMA, NUCLEUS = (222, 172, 205), (104, 72, 146)  # eosin and hematoxylin as scanners show them

RGB = npt.NDArray[np.uint8]


def texture(nuclei_per_mm2: int, seed: int = 0, side: int = BLOCK_PX) -> RGB:
    """Return tissue uint8 (side, side, 3): fibrous stroma, nuclei with chromatin, noise of a camera."""
    rng = np.random.default_rng(seed)
    # nuclei closer than 13 px to another are left out: a few more are asked for than shall be there
    wanted = nuclei_per_mm2 * (side / BLOCK_PX) ** 2
    material = synthetic_tile(int(wanted * (1 + 0.3 * wanted / (9000 * (side / BLOCK_PX) ** 2))), side, seed).prob[1]
    share = (material.astype(np.float32) / 255)[..., None]
    fibers = ndi.gaussian_filter(rng.standard_normal((side, side), np.float32), (2, 9)) * 60
    chromatin = ndi.gaussian_filter(rng.standard_normal((side, side), np.float32), 1.2) * 45
    stroma = np.array(STROMA, np.float32) + fibers[..., None] * np.array([0.6, 1.0, 0.7], np.float32)
    nucleus = np.array(NUCLEUS, np.float32) + chromatin[..., None]
    rgb = stroma + share * (nucleus - stroma) + rng.standard_normal((side, side, 3), np.float32) * 4
    return np.clip(rgb, 0, 255).astype(np.uint8)


def block(tissue: RGB, row: int, column: int) -> RGB:
    """Return the texture as it stands in one block of the slide."""
    turned = tissue[:: -1 if row % 2 else 1, :: -1 if column % 2 else 1]
    return np.roll(turned, (977 * row, 613 * column), (0, 1))


def jpeg_tiles(image: RGB) -> Iterator[bytes]:
    """Yield an image as JPEG tiles, row by row, white beyond its edges."""
    height, width = image.shape[:2]
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            tile = np.full((TILE_PX, TILE_PX, 3), 255, np.uint8)
            part = image[y : y + TILE_PX, x : x + TILE_PX]
            tile[: part.shape[0], : part.shape[1]] = part
            sink = io.BytesIO()
            Image.fromarray(tile).save(sink, "JPEG", quality=QUALITY, subsampling="4:2:0")
            yield sink.getvalue()


def make_slide(path: Path, side_px: int, nuclei_per_mm2: int = 8000, seed: int = 0) -> Path:
    """Write a square slide, unless it is there already; return its path."""
    if path.exists():
        return path
    step = min(BLOCK_PX, side_px)
    tissue = texture(nuclei_per_mm2, seed, step)
    n = -(-side_px // step)
    rows = [np.concatenate([block(tissue, r, c) for c in range(n)], axis=1) for r in range(n)]
    image = np.ascontiguousarray(np.concatenate(rows)[:side_px, :side_px])
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        write_pyramid(file, image)
    partial.rename(path)
    return path


def write_pyramid(file: BinaryIO, image: RGB) -> None:
    """Write a pyramid as BigTIFF: levels one after the other, each its tiles and then its directory.

    By hand, since tifffile asks for imagecodecs (28 MB to carry) even for tiles that are encoded already.
    """
    file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
    link = 8  # where the next directory's place is to be written
    for factor in LEVELS:
        h, w = image.shape[0] // factor, image.shape[1] // factor
        level = image
        if factor > 1:
            blocks = image[: h * factor, : w * factor].reshape(h, factor, w, factor, 3)
            level = blocks.mean(axis=(1, 3), dtype=np.float32).astype(np.uint8)
        places, sizes = [], []
        for data in jpeg_tiles(level):
            places.append(file.tell())
            sizes.append(file.write(data))
        per_cm = round(1e4 / MPP / factor)
        lists = [file.tell()]
        file.write(struct.pack(f"<{len(places)}Q", *places))
        lists.append(file.tell())
        file.write(struct.pack(f"<{len(sizes)}Q", *sizes))
        one = len(places) == 1
        tags = [  # tag, type (3 short, 4 long, 5 rational, 16 long8), count, value or place
            (254, 4, 1, int(factor > 1)), (256, 4, 1, w), (257, 4, 1, h), (258, 3, 3, 8 | 8 << 16 | 8 << 32), (259, 3, 1, 7),
            (262, 3, 1, 6), (277, 3, 1, 3), (282, 5, 1, per_cm | 1 << 32), (283, 5, 1, per_cm | 1 << 32), (284, 3, 1, 1),
            (296, 3, 1, 3), (322, 3, 1, TILE_PX), (323, 3, 1, TILE_PX), (324, 16, len(places), places[0] if one else lists[0]),
            (325, 16, len(sizes), sizes[0] if one else lists[1]), (530, 3, 2, 2 | 2 << 16),
        ]  # fmt: skip
        start = file.tell()
        file.write(struct.pack("<Q", len(tags)) + b"".join(struct.pack("<HHQQ", *tag) for tag in tags) + bytes(8))
        end = file.tell()
        file.seek(link)
        file.write(struct.pack("<Q", start))
        link = end - 8
        file.seek(end)


def main() -> None:
    """Write a slide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--side", type=int, default=12000)
    parser.add_argument("--nuclei-per-mm2", type=int, default=8000)
    args = parser.parse_args()
    path = make_slide(args.slide, args.side, args.nuclei_per_mm2)
    print(f"{path}: {args.side} px, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
