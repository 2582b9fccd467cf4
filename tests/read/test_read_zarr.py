"""Zarr arrays and OME-Zarr images as slides, in every order of axes and type of samples."""

import numpy as np
import pytest

from wsiseg.errors import ImplausibleMppError, MissingMppError, SlideOpenError
from wsiseg.read import open_slide

RGB = np.random.default_rng(0).integers(90, 256, (60, 80, 3), np.uint8)
RGB[0, 0] = 255
PLANES = np.moveaxis(RGB, 2, 0)
CHANNELS = ({"name": "c", "type": "channel"},)


def write(
    path, pixels, *, axes=None, unit="micrometer", step=0.5, names=(), version="0.5", levels=1, mpp=None, dimensions=None
):
    import zarr

    if axes is None:
        array = zarr.create_array(str(path), data=pixels, dimension_names=dimensions)
        if mpp is not None:
            array.attrs["mpp"] = mpp
        return path
    root = zarr.open_group(str(path), mode="w", zarr_format=3 if version == "0.5" else 2)
    kinds = {"c": "channel", "t": "time"}
    named = [{"name": a, "type": kinds.get(a, "space"), **({"unit": unit} if a in "xyz" and unit else {})} for a in axes]
    datasets = []
    for k in range(levels):
        thin = tuple(slice(None, None, 2**k) if a in "xy" else slice(None) for a in axes)
        root.create_array(str(k), data=np.ascontiguousarray(pixels[thin]))
        scale = [step * 2**k if a in "xy" else 1.0 for a in axes]
        datasets.append({"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    image = {"axes": named, "datasets": datasets, "name": "s"}
    omero = {"omero": {"channels": [{"label": name} for name in names]}} if names else {}
    if version == "0.5":
        root.attrs["ome"] = {"version": "0.5", "multiscales": [image], **omero}
    else:
        root.attrs.update({"multiscales": [{**image, "version": version}], **omero})
    return path


def shown(slide):
    return slide.read_level(0, 0, 0, slide.meta.width_px, slide.meta.height_px)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("pixels", "axes"),
    [
        (PLANES, "cyx"), (RGB, "yxc"), (PLANES[None, :, None], "tczyx"), (PLANES[:, None], "czyx"),
        (PLANES.astype(np.uint16) * 257, "cyx"), (PLANES.astype(np.uint16) * 16, "cyx"), (PLANES / np.float32(255), "cyx"),
    ],
)  # fmt: skip
def test_ome_zarr(tmp_path, pixels, axes, version):
    slide = open_slide(write(tmp_path / "s.zarr", pixels, axes=axes, version=version, levels=2))
    assert (slide.meta.mpp, slide.meta.mpp_source, slide.meta.level_downsamples) == (0.5, "zarr", (1.0, 2.0))
    np.testing.assert_array_equal(shown(slide), RGB)
    np.testing.assert_array_equal(slide.read_level(1, 3, 2, 20, 10), RGB[::2, ::2][2:12, 3:23])
    np.testing.assert_array_equal(slide.read_level(0, 70, 50, 20, 20)[:10, :10], RGB[50:, 70:])


def test_channel_names_give_the_order(tmp_path):
    slide = open_slide(write(tmp_path / "s.zarr", PLANES[::-1], axes="cyx", names=("Blue", "Green", "Red")))
    np.testing.assert_array_equal(shown(slide), RGB)
    with pytest.raises(SlideOpenError, match=r"DAPI, CD3, CD8.*fluorescence"):
        open_slide(write(tmp_path / "f.zarr", PLANES, axes="cyx", names=("DAPI", "CD3", "CD8")))


@pytest.mark.parametrize(("unit", "step"), [("nanometer", 500.0), ("millimeter", 0.0005), ("micrometer", 0.5)])
def test_units_of_the_scale(tmp_path, unit, step):
    assert open_slide(write(tmp_path / "s.zarr", PLANES, axes="cyx", unit=unit, step=step)).meta.mpp == pytest.approx(0.5)


def test_a_scale_without_unit_states_nothing_and_one_of_no_microscope_is_refused(tmp_path):
    with pytest.raises(MissingMppError):
        open_slide(write(tmp_path / "a.zarr", PLANES, axes="cyx", unit=None))
    with pytest.raises(ImplausibleMppError, match="OME-Zarr scale"):
        open_slide(write(tmp_path / "b.zarr", PLANES, axes="cyx", step=50.0))


@pytest.mark.parametrize("dimensions", [None, ("c", "y", "x")])
def test_plain_arrays_with_channels_first(tmp_path, dimensions):
    slide = open_slide(write(tmp_path / "s.zarr", PLANES, mpp=0.3, dimensions=dimensions))
    assert slide.meta.mpp == 0.3
    np.testing.assert_array_equal(shown(slide), RGB)


@pytest.mark.parametrize(
    ("pixels", "axes", "said"),
    [
        (RGB[..., 1], None, r"uint8 \(60, 80\)"),
        (np.dstack([RGB, RGB[..., :1]]), None, r"uint8 \(60, 80, 4\)"),
        (RGB[..., :1], "yxc", "1 samples"),
        (np.concatenate([PLANES, PLANES[:2]]), "cyx", "5 samples"),
        (np.stack([PLANES] * 3, 1), "czyx", "stack .z 3"),
        (PLANES.astype(np.int16), "cyx", "int16"),
        (PLANES // 5, "cyx", "bright in all three"),
    ],
)
def test_what_is_no_colour_is_refused(tmp_path, pixels, axes, said):
    with pytest.raises(SlideOpenError, match=said):
        open_slide(write(tmp_path / "s.zarr", pixels, axes=axes), mpp=0.5)


def test_a_group_that_is_no_image(tmp_path):
    import zarr

    zarr.open_group(str(tmp_path / "s.zarr"), mode="w").create_array("0", data=RGB)
    with pytest.raises(SlideOpenError, match="multiscales"):
        open_slide(tmp_path / "s.zarr", mpp=0.5)
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(SlideOpenError, match="Zarr"):
        open_slide(tmp_path / "empty.zarr", mpp=0.5)
