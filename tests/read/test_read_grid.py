import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.errors import ConfigError
from wsiseg.read import ArraySlide, TissueMask, tile_grid, working_size


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 50), st.integers(0, 20), st.sampled_from([1.0, 1.996, 0.5, 0.37]))
def test_cores_partition_the_plane(w, h, tile, halo, scale):
    meta = ArraySlide(np.zeros((h, w, 3), np.uint8), mpp=1, slide_id="s").meta
    tiles = tile_grid(meta, scale, tile, halo, None)
    width, height = working_size(meta, scale)
    hits = np.zeros((height, width), int)
    for k, t in enumerate(tiles):
        assert 0 < t.core.w <= tile
        assert 0 < t.core.h <= tile
        hits[t.core.y : t.core.y1, t.core.x : t.core.x1] += 1
        assert (t.read.x, t.read.y, t.read.x1, t.read.y1) == (
            t.core.x - halo,
            t.core.y - halo,
            t.core.x1 + halo,
            t.core.y1 + halo,
        )
        assert (t.slide_id, t.tile_id, t.scale, t.tissue_frac) == ("s", k, scale, 1.0)
    assert (hits == 1).all()
    assert [(t.core.y, t.core.x) for t in tiles] == sorted((t.core.y, t.core.x) for t in tiles)


def test_tissue_is_filled_in_and_does_not_change_ids():
    meta = ArraySlide(np.zeros((100, 200, 3), np.uint8), mpp=1).meta
    mask = np.zeros((10, 20), np.uint8)
    mask[:, :6] = 1
    tiles = tile_grid(meta, 2.0, 100, 8, TissueMask(mask, 10.0, 10.0))
    assert [t.tile_id for t in tiles] == list(range(8))
    assert [t.tissue_frac for t in tiles] == pytest.approx([1, 0.2, 0, 0] * 2)


def test_impossible_sizes():
    meta = ArraySlide(np.zeros((10, 10, 3), np.uint8), mpp=1).meta
    with pytest.raises(ConfigError):
        tile_grid(meta, 1.0, 0, 8, None)
    with pytest.raises(ConfigError):
        tile_grid(meta, 1.0, 10, -1, None)
