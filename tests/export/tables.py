"""Tables and slides for the tests of this room."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.oracles.rings import nuclei
from wsiseg.config import WriteConfig
from wsiseg.types import Box, PolygonBatch, SlideMeta, Tile, TileStats
from wsiseg.write import write_nuclei_table, write_part

SLIDE_ID = "TCGA-05-4249-01Z-00-DX1.9fce0297-cc19-4c04-872c-4466ee4024db"


def slide_meta(mpp: float = 0.25, bounds: tuple[int, int] = (0, 0), side: int = 12000) -> SlideMeta:
    return SlideMeta(
        SLIDE_ID, f"/slides/{SLIDE_ID}.svs", side, side, mpp, "openslide", bounds[0], bounds[1], side, side, cohort="LUAD"
    )


def make_table(
    folder: Path,
    n: int = 2000,
    mpp: float = 0.25,
    scale: float = 1.0,
    bounds: tuple[int, int] = (0, 0),
    extent: int = 9000,
    rows: int = 512,
) -> Path:
    batch = nuclei(3, n, extent)
    batch = PolygonBatch(batch.xy + 1000, batch.ring_offsets, _moved(batch.columns, 1000))
    box = Box(0, 0, 24000, 24000)
    tile = Tile(SLIDE_ID, 0, box, box, scale, 1.0)
    part = folder / "000000.parquet"
    write_part(part, batch, tile, TileStats(), {}, "d" * 16)
    out = folder / f"{SLIDE_ID}.parquet"
    meta = dataclasses.replace(slide_meta(mpp, bounds), width_px=round(12000 / scale), height_px=round(12000 / scale))
    write_nuclei_table([part], out, meta, scale, {"digest": "d" * 16}, WriteConfig(row_group_rows=rows))
    return out


def _moved(columns: dict, shift: int) -> dict:
    seed = columns["nucleus_id"] + shift * 2**31 + shift
    return {**columns, "nucleus_id": seed, "cx_wpx": columns["cx_wpx"] + shift, "cy_wpx": columns["cy_wpx"] + shift}
