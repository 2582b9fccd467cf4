"""The tiling cannot be seen: one real slide, three tile sizes, any order, the same nuclei."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from tests.run.conftest import SLIDE
from wsiseg.config import PredictConfig, ReadConfig, RunConfig
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import SlideInput
from wsiseg.run.context import WorkerContext
from wsiseg.run.finish import finish_slide
from wsiseg.run.job import prepare_slide, tiles_of
from wsiseg.run.tile import segment_tile
from wsiseg.types import Stain


def nuclei_at(
    tile_wpx: int, slide: SlideInput, out: Path, *, precision: str, order: int = 0, weights: str = "default"
) -> dict[int, bytes]:
    """Segment a slide at one tile size, tiles in a shuffled order, and return WKB by nucleus id from the final table."""
    config = RunConfig(
        read=ReadConfig(tile_wpx=tile_wpx),
        predict=PredictConfig(weights=weights, precision=precision),  # type: ignore[arg-type]
    )
    folder = RunFolder(out)
    folder.create()
    context = WorkerContext(folder, config, f"tile-{tile_wpx}")
    try:
        job = prepare_slide(slide, folder, config, context.model.mpp, context.stain_aim)
        tiles = [t for t in tiles_of(job, config) if t.tissue_frac > 0]
        random.Random(order).shuffle(tiles)
        for tile in tiles:
            assert segment_tile(tile, context).status == "done"
        finish_slide(slide.slide_id, [], context)
    finally:
        context.close()
    table = pq.read_table(folder.table(slide.slide_id), columns=["nucleus_id", "geometry"])
    return dict(zip(table["nucleus_id"].to_pylist(), table["geometry"].to_pylist(), strict=True))


def doubled(nuclei: dict[int, bytes]) -> int:
    """Count pairs of polygons with IoU above 0.5: the same nucleus written twice."""
    polygons = shapely.from_wkb(list(nuclei.values()))
    left, right = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    left, right = left[left < right], right[left < right]
    inter = shapely.area(shapely.intersection(polygons[left], polygons[right]))
    union = shapely.area(polygons[left]) + shapely.area(polygons[right]) - inter
    return int(np.count_nonzero(inter > 0.5 * union))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_crop_at_three_tile_sizes(crop_png: Path, tmp_path: Path, precision: str) -> None:
    slide = SlideInput("crop", str(crop_png), mpp=0.499)
    sets = [nuclei_at(t, slide, tmp_path / str(t), precision=precision, order=t) for t in (300, 640, 4000)]
    whole = sets[-1]
    assert len(whole) > 100
    for other in sets[:-1]:
        same = sum(whole.get(k) == v for k, v in other.items())
        if precision == "fp32":
            assert len(other) == len(whole)
        assert same >= 0.999 * max(len(whole), len(other)) - 1  # one nucleus of a few hundred is more than 0.1 %
        assert doubled(other) == 0


def test_whole_test_slide_at_1000_2000_4000(tmp_path: Path) -> None:
    slide = SlideInput(SLIDE.stem, str(SLIDE))
    sets = [nuclei_at(t, slide, tmp_path / str(t), precision="auto", order=t) for t in (1000, 2000, 4000)]
    whole = sets[-1]
    assert len(whole) > 1000
    for other in sets[:-1]:
        same = sum(whole.get(k) == v for k, v in other.items())
        assert same >= 0.999 * max(len(whole), len(other))
        assert doubled(other) == doubled(whole) == 0


def test_order_of_tiles_does_not_reach_the_table(crop_png: Path, tmp_path: Path) -> None:
    slide = SlideInput("crop", str(crop_png), mpp=0.499)
    for order in (1, 2):
        nuclei_at(300, slide, tmp_path / str(order), precision="fp32", order=order)
    first, second = ((tmp_path / str(o) / "nuclei/crop.parquet").read_bytes() for o in (1, 2))
    assert first == second


def test_context_keeps_few_slides_open(crop_png: Path, tmp_path: Path) -> None:
    config = RunConfig(read=ReadConfig(tile_wpx=4000))
    folder = RunFolder(tmp_path)
    folder.create()
    context = WorkerContext(folder, config, "d")
    for k in range(6):
        slide = dataclasses.replace(SlideInput("crop", str(crop_png), mpp=0.499), slide_id=f"s{k}")
        prepare_slide(slide, folder, config, 0.25, Stain())
        with context.slide(f"s{k}") as (job, _):
            assert job.meta.slide_id == f"s{k}"
    assert len(context._slides) <= 3
    context.close()
    assert not len(context._slides)
