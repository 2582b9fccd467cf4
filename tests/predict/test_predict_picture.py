"""A picture without its surroundings gets the maps of the slide, as far as the network's field does not reach its edge."""

from __future__ import annotations

import numpy as np
import pytest

from wsiseg.config import PredictConfig
from wsiseg.errors import InputError
from wsiseg.predict import half_field_wpx, load_model, predict, predict_picture
from wsiseg.types import Box


def test_inside_it_is_what_predict_returns() -> None:
    model = load_model(PredictConfig(weights="open", precision="fp32", engine="eager"))
    side = 384
    need = model.input_box(Box(0, 0, side, side))
    random = np.random.default_rng(0)
    around = random.integers(0, 255, (need.h // 8, need.w // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    rgb = around[-need.y : -need.y + side, -need.x : -need.x + side]
    maps = predict_picture(model, rgb)
    assert (maps.shape, maps.dtype) == ((2, side, side), np.uint8)
    whole = predict(model, around, need, Box(0, 0, side, side))
    reach = half_field_wpx(model.spec)
    assert 2 * reach < side
    inner = np.s_[:, reach : side - reach, reach : side - reach]
    assert np.abs(maps[inner].astype(int) - whole[inner]).max() <= 1  # other sizes of a window may round the last bit otherwise
    for bad in (rgb[:, :200], rgb[:64, :64], rgb.astype(float), rgb[..., :2]):
        with pytest.raises(InputError, match="Expected"):
            predict_picture(model, bad)
