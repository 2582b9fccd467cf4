"""Cut the bundled demo slide out of a larger SVS, copying its JPEG tiles byte for byte.

    python scripts/make_demo_slide.py SOURCE.svs wsiseg/demo/atlas_metaplasia_HE_crop.svs

Only the coarse level is encoded anew (JPEG quality 80; needs imagecodecs). The window is in whole tiles of the source.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

FIRST_TILE = (31, 28)  # column, row: gastric glands, muscle, lymphocytes and glass at the slide's lower right
N_TILES = (19, 16)
COARSER = 4
QUALITY = 80


def tile_bytes(source: Path, page: tifffile.TiffPage) -> Iterator[bytes]:
    """Yield the window's tiles as they lie in the file, row by row."""
    across = -(-page.imagewidth // page.tilewidth)
    with source.open("rb") as file:
        for row in range(N_TILES[1]):
            for column in range(N_TILES[0]):
                k = (FIRST_TILE[1] + row) * across + FIRST_TILE[0] + column
                file.seek(page.dataoffsets[k])
                yield file.read(page.databytecounts[k])


def encoded_tiles(level: np.ndarray, side: int) -> Iterator[bytes]:
    """Yield a level uint8 (h, w, 3) as JPEG tiles of ``side`` px, row by row, white beyond its edges."""
    rows, columns = -(-level.shape[0] // side), -(-level.shape[1] // side)
    padded = np.full((rows * side, columns * side, 3), 255, np.uint8)
    padded[: level.shape[0], : level.shape[1]] = level
    for row in range(rows):
        for column in range(columns):
            tile = np.ascontiguousarray(padded[row * side : (row + 1) * side, column * side : (column + 1) * side])
            encoded = imagecodecs.jpeg8_encode(tile, level=QUALITY, colorspace="rgb", outcolorspace="ycbcr", subsampling="420")
            yield bytes(encoded)


def main() -> None:
    """Read SOURCE, write TARGET."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    with tifffile.TiffFile(args.source) as tiff:
        page = tiff.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        side = page.tilewidth
        tiles = list(tile_bytes(args.source, page))
    width, height = N_TILES[0] * side, N_TILES[1] * side
    pixels = np.empty((height, width, 3), np.uint8)
    for k, tile in enumerate(tiles):
        row, column = divmod(k, N_TILES[0])
        pixels[row * side : (row + 1) * side, column * side : (column + 1) * side] = imagecodecs.jpeg8_decode(tile)
    means = pixels.reshape(height // COARSER, COARSER, width // COARSER, COARSER, 3).mean(axis=(1, 3))
    coarse = np.floor(means + 0.5).astype(np.uint8)
    head = "Aperio Image Library v12.0.16\r\n"
    x, y = FIRST_TILE[0] * side, FIRST_TILE[1] * side
    facts = f"AppMag = 40|MPP = 0.2528|Note = re-assembled from Deep Zoom tiles, cropped at {x} {y}"
    common = {"tile": (side, side), "photometric": "ycbcr", "compression": "jpeg", "metadata": None, "software": False}
    with tifffile.TiffWriter(args.target) as out:
        out.write(
            iter(tiles),
            shape=pixels.shape,
            dtype=np.uint8,
            subsampling=(2, 2),
            description=f"{head}{width}x{height} [0,0 {width}x{height}] (256x256) JPEG/RGB Q=80|{facts}",
            **common,
        )
        size = f"{coarse.shape[1]}x{coarse.shape[0]}"
        out.write(
            encoded_tiles(coarse, side),
            shape=coarse.shape,
            dtype=np.uint8,
            subsampling=(2, 2),
            subfiletype=1,
            description=f"{head}{width}x{height} [0,0 {width}x{height}] (256x256) -> {size} JPEG/RGB Q=80|{facts}",
            **common,
        )
    print(f"{args.target}: {width} x {height} px, {args.target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
