"""Nothing overflows: step counts beyond their bits, huge components, many of everything; and the doors refuse nonsense."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage as ndi

from wsiseg.config import SeparateConfig
from wsiseg.errors import ConfigError, InputError
from wsiseg.separate import SeparateParams, distance_table, find_markers, resolve_params, separate

STEP_LAST = 2**18 - 1


def params(**changes: object) -> SeparateParams:
    base = resolve_params(SeparateConfig(), {}, 0.25)
    return SeparateParams(**{**{n: getattr(base, n) for n in base.__slots__}, **changes})  # type: ignore[arg-type]


def test_flood_stops_where_the_step_count_ends() -> None:
    from wsiseg.separate import _cpu, _cpu_flood

    width, left, right = 600_000, 10, 599_990
    prob = np.zeros((2, 1, width), np.uint8)
    prob[1] = 255
    prob[0, 0, [left, right]] = 255
    m16, markers, runs = _cpu.prepare(prob[0], prob[1], params(compactness_q256=0, center_threshold=1))
    assert markers.tolist() == [left, right]
    labels = np.zeros((1, width), np.int32)
    _cpu_flood.flood_shared(labels, m16, markers, runs, distance_table(0))
    x = np.arange(width)
    expected = np.where(abs(x - left) <= STEP_LAST, 1, np.where(abs(x - right) <= STEP_LAST, 2, 0))
    np.testing.assert_array_equal(labels[0], expected)
    assert len(separate(prob, params(compactness_q256=0, center_threshold=1)).anchors) == 0  # both exceed any allowed size


def test_one_component_of_four_million_pixels() -> None:
    prob = np.full((2, 2048, 2049), 255, np.uint8)
    prob[0] = 0
    prob[0, 8::16, 8::16] = 255  # 16384 markers on one plateau
    out = separate(prob, params(compactness_q256=0, center_threshold=1, min_area_px=1, max_area_px=STEP_LAST))
    assert len(out.anchors) == 128 * 128
    assert (out.labels > 0).all()
    areas = np.bincount(out.labels.ravel())[1:]
    inner = ((out.anchors > 16) & (out.anchors < 2000)).all(axis=1)
    assert areas[inner].min() > 200


def test_more_runs_and_markers_than_any_first_guess() -> None:
    yy, xx = np.mgrid[:1500, :1500]
    dots = (255 * ((yy % 4 < 2) & (xx % 4 < 2))).astype(np.uint8)
    out = separate(
        np.stack([dots, dots]), params(marker_radius_px=1, material_threshold=2200, center_threshold=1, min_area_px=1)
    )
    assert len(out.anchors) == 375 * 375  # each dot is its own component
    assert np.array_equal(np.unique(out.labels), np.arange(375 * 375 + 1))


def test_nested_frames_as_wide_as_the_window() -> None:
    prob = np.zeros((2, 1200, 1200), np.uint8)
    starts = range(0, 590, 4)
    for k in starts:  # each frame is a component as wide as the window, with a marker in two of its corners
        prob[1, k : 1200 - k, k : 1200 - k] = 255
        prob[1, k + 2 : 1198 - k, k + 2 : 1198 - k] = 0
        prob[0, k, [k, 1199 - k]] = 255
    p = params(center_threshold=1, marker_radius_px=3, min_area_px=1, max_area_px=STEP_LAST)
    assert len(find_markers(prob, p)) == 2 * len(starts)
    labels = separate(prob, p).labels
    ours, theirs = np.unique(labels[labels > 0]), ndi.label(labels > 0)[1]
    assert len(ours) == 2 * theirs


@pytest.mark.parametrize(
    "bad",
    [np.zeros((2, 4, 4)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros((2, 0, 4), np.uint8), [1, 2]],
)
def test_wrong_maps_are_refused(bad: object) -> None:
    with pytest.raises(InputError, match=r"expected probability maps uint8 \(2, H, W\)"):
        separate(bad, params())


def test_params_resolve_in_the_order_config_card_fallback() -> None:
    card = {"center_threshold_frac": 0.5, "marker_radius_wpx": 9, "min_area_um2": 10.0}
    p = resolve_params(SeparateConfig(marker_radius_wpx=3, max_area_um2=100.0), card, 0.25)
    assert (p.center_threshold, p.marker_radius_px) == (32640, 3)
    assert (p.min_area_px, p.max_area_px) == (160, 1600)
    assert p.material_threshold == 2040  # fallback 0.5 of 4080
    assert resolve_params(SeparateConfig(max_area_um2=100.0), card, 0.5).min_area_px == 40


@pytest.mark.parametrize(
    ("config", "card", "mpp"),
    [
        (SeparateConfig(), {"radius": 3}, 0.25),
        (SeparateConfig(), {}, 0.0),
        (SeparateConfig(), {"marker_radius_wpx": 99}, 0.25),
        (SeparateConfig(max_area_um2=1e6), {}, 0.25),
        (SeparateConfig(min_area_um2=50.0, max_area_um2=20.0), {}, 0.25),
    ],
)
def test_impossible_params_are_refused(config: SeparateConfig, card: dict[str, object], mpp: float) -> None:
    with pytest.raises(ConfigError, match="separate"):
        resolve_params(config, card, mpp)


def test_distance_table_is_the_rounded_product() -> None:
    d = np.arange(1025)
    for q in (0, 1, 37, 256, 512, 4096):
        exact = 16 * (q / 256) * np.sqrt(d)
        table = distance_table(q)
        assert table.dtype == np.uint16
        assert np.abs(table - exact).max() <= 0.5 + 1e-9
    assert distance_table(4096).max() + 4080 < 2**14 - 1


def test_read_only_installation_still_runs(tmp_path: Path) -> None:
    code = (
        "import numba.core.caching as c\n"
        "for l in c.CacheImpl._locator_classes: l.from_function = classmethod(lambda *a, **k: None)\n"
        "from wsiseg.backend._cpu_jit import jit\n"
        "assert jit(lambda x: x + 1)(2) == 3\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=120)
