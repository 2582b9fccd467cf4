"""Slides stored as an array: NumPy in memory, or Zarr on disk (a plain array, or OME-Zarr)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import InputError, SlideOpenError, TileReadError
from wsiseg.read._damage import DECODER_ERRORS, require_plausible_size
from wsiseg.read._levels import LevelSlide, SlideFile
from wsiseg.read._mpp_text import MppClaim, number, um_per_unit
from wsiseg.read._window import RGB
from wsiseg.read.layout import colour_order, foreign_channels
from wsiseg.read.mpp import resolve_mpp
from wsiseg.read.samples import Depth, depth_of, looks_bright, to_u8
from wsiseg.types import SlideMeta

__all__ = ["ArraySlide", "open_zarr"]


class ArraySlide(LevelSlide):
    """A slide of one or more array levels.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3): NumPy, Zarr, or any array that is sliced in the same way.
    mpp
        um per px of ``pixels``.
    coarser
        Further levels; the size of ``pixels`` is a whole multiple of the size of each.
    about
        Facts of the file that the array was read from, ``mpp`` among them; None: there is no file.

    Raises
    ------
    InputError
        An array of another shape or dtype, or a level of another size.
    """

    def __init__(
        self,
        pixels: Any,
        *,
        mpp: float,
        slide_id: str = "array",
        coarser: tuple[Any, ...] = (),
        about: SlideMeta | None = None,
    ) -> None:
        self._levels = (pixels, *coarser)
        for level in self._levels:
            if len(level.shape) != 3 or level.shape[2] != 3 or level.dtype != np.uint8:
                raise InputError(f"slide {slide_id}: expected uint8 (H, W, 3), got {level.dtype} {tuple(level.shape)}.")
        height_px, width_px = (int(n) for n in pixels.shape[:2])
        require_plausible_size(width_px, height_px, f"slide {slide_id}")
        factors = [width_px // max(int(level.shape[1]), 1) for level in self._levels]
        sizes = [(f * level.shape[0], f * level.shape[1]) for f, level in zip(factors, self._levels, strict=True)]
        if any(size != (height_px, width_px) for size in sizes):
            raise InputError(f"slide {slide_id}: expected every level to be a whole fraction of {width_px} x {height_px} px.")
        self.level_sizes_px = tuple((int(level.shape[1]), int(level.shape[0])) for level in self._levels)
        plain = SlideMeta(slide_id, "", width_px, height_px, mpp, "user", vendor="array", reader="array")
        downsamples = tuple(float(f) for f in factors)
        self.meta = dataclasses.replace(about or plain, width_px=width_px, height_px=height_px, level_downsamples=downsamples)

    def _read_inside(self, level: int, x: int, y: int, w: int, h: int) -> RGB:
        try:
            return np.array(self._levels[level][y : y + h, x : x + w])
        except (OSError, RuntimeError, ValueError) as err:
            raise TileReadError(
                f"slide {self.meta.slide_id}: window x={x} y={y} w={w} h={h} of level {level} cannot be read: {err}"
            ) from err

    def close(self) -> None:
        """Release the arrays."""
        self._levels = ()


def open_zarr(file: SlideFile) -> ArraySlide:
    """Open a Zarr array, or the first multiscale image of an OME-Zarr group, as a slide.

    The array has three channels, last or first (``dimension_names``, OME axes, else the axis of length 3), and further axes
    of length 1. Its dtype is uint8, or a wider one that is converted by the rule of ``wsiseg.read.samples``. um per px come
    from the user, the OME scale with its unit, or the attribute ``mpp``.

    Raises
    ------
    SlideOpenError
        The folder is no such array.
    MissingMppError, ImplausibleMppError, AnisotropicMppError
    """
    import zarr

    path = file.path
    try:
        node = zarr.open(path, mode="r")
        attributes = dict(node.attrs)
        image = _multiscale(attributes)
        if image is None and not hasattr(node, "shape"):
            raise ValueError("a group without OME 'multiscales'")
        arrays = [node] if image is None else [node[str(d["path"])] for d in image["datasets"]]
        levels = [_Colour(array, image, attributes) for array in arrays]
        levels[0].fit(levels[-1])
        for level in levels[1:]:
            level.depth = levels[0].depth
        h, w = levels[0].shape[:2]
        whole = [
            v for v in levels[1:] if w % max(v.shape[1], 1) == 0 and v.shape[0] * (w // v.shape[1]) == h and v.shape[1] < w
        ]
        found = resolve_mpp(
            {}, user_mpp=file.mpp, vendor="zarr", where=f"Zarr array {path}", claims=_zarr_claims(image, attributes)
        )
        about = dataclasses.replace(file.meta((w, h), found), vendor="zarr", reader="zarr", layout=levels[0].words)
        return ArraySlide(levels[0], mpp=found.value, slide_id=file.slide_id, coarser=tuple(whole), about=about)
    except InputError:
        raise
    except DECODER_ERRORS as err:
        raise SlideOpenError(
            f"{path}: cannot be opened as Zarr: {err}. Expected an array (H, W, 3) or (3, H, W) of H&E colour, or OME-Zarr."
        ) from err


def _multiscale(attributes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the first multiscale image of OME-Zarr 0.5 (under ``ome``) or earlier, ``None`` if there is none."""
    images = dict(attributes.get("ome") or {}).get("multiscales") or attributes.get("multiscales")
    return dict(images[0]) if images else None


def _axes(array: Any, image: Mapping[str, Any] | None) -> str:
    """Return one letter per axis, from the axes' names; without names from the shape, with three channels last or first."""
    names = [a["name"] if isinstance(a, Mapping) else a for a in (image or {}).get("axes", ())]
    names = names or list(getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ())
    letters = "".join(str(name).strip().lower()[:1] if name else "?" for name in names).replace("s", "c").replace("b", "c")
    if len(letters) == len(array.shape) and {"y", "x", "c"} <= set(letters):
        return letters
    if len(array.shape) == 3 and 3 in (array.shape[2], array.shape[0]):
        return "yxc" if array.shape[2] == 3 else "cyx"
    if len(array.shape) == 5:
        return "tczyx"
    raise ValueError(f"{_held(array)}: which axis holds red, green and blue is not stated")


def _held(array: Any) -> str:
    return f"{array.dtype} {tuple(array.shape)}"


class _Colour:
    """A Zarr array that is read as uint8 (H, W, 3)."""

    dtype = np.dtype(np.uint8)

    def __init__(self, array: Any, image: Mapping[str, Any] | None, attributes: Mapping[str, Any]) -> None:
        self._array, self._axes, self.depth = array, _axes(array, image), Depth()
        sizes = dict(zip(self._axes, array.shape, strict=True))
        long = [f"{axis} {n}" for axis, n in sizes.items() if axis not in "yxc" and n > 1]
        omero = dict(attributes.get("ome") or {}).get("omero") or attributes.get("omero") or {}
        labels = [str(channel.get("label", "")) for channel in omero.get("channels", ())]
        if long:
            raise ValueError(f"{_held(array)}: it is a stack ({', '.join(long)}); save the plane to segment")
        if labels and foreign_channels(labels):
            names = ", ".join(labels)
            raise ValueError(f"{_held(array)}: its channels are {names}, not red, green and blue: is it fluorescence?")
        if sizes["c"] != 3:
            raise ValueError(f"{_held(array)}: {sizes['c']} samples, expected 3: red, green and blue")
        self._order = colour_order(labels) or (0, 1, 2)
        self.shape = (int(sizes["y"]), int(sizes["x"]), 3)

    @property
    def words(self) -> str:
        """Describe how the picture is stored."""
        rule = "" if self._array.dtype == np.uint8 else f", {self.depth.words}"
        return f"3 samples of {self._array.dtype}, Zarr {tuple(self._array.shape)}, axes {self._axes}{rule}"

    def fit(self, coarsest: _Colour) -> None:
        """Fit the rule that converts samples to 8 bits, on the coarsest level or on windows spread evenly over it."""
        if self._array.dtype == np.uint8 and self._axes.endswith("yxc"):
            return
        h, w = coarsest.shape[:2]
        steps = [range(0, n, max(512, -(-n // 8))) if h * w > 2**24 else range(0, n, n) for n in (h, w)]
        side = 512 if h * w > 2**24 else max(h, w)
        seen = np.concatenate(
            [coarsest.samples(slice(y, y + side), slice(x, x + side)).reshape(-1, 3) for y in steps[0] for x in steps[1]]
        )
        self.depth = depth_of(seen)
        if not self._axes.endswith("yxc") and not looks_bright(to_u8(seen, self.depth)):
            raise ValueError(
                f"{_held(self._array)}: no pixel is bright in all three channels, as glass and stained tissue are: is it "
                "fluorescence? Expected H&E colour"
            )

    def samples(self, rows: slice, columns: slice) -> npt.NDArray[Any]:
        """Return samples (h, w, 3) as they are stored, in the order red, green, blue."""
        index = tuple({"y": rows, "x": columns, "c": slice(None)}.get(axis, 0) for axis in self._axes)
        kept = [axis for axis in self._axes if axis in "yxc"]
        values = np.asarray(self._array[index]).transpose([kept.index(axis) for axis in "yxc"])
        return values if self._order == (0, 1, 2) else values[..., list(self._order)]

    def __getitem__(self, index: tuple[slice, slice]) -> npt.NDArray[np.uint8]:
        """Return a window as uint8 (h, w, 3)."""
        return np.ascontiguousarray(to_u8(self.samples(*index), self.depth))


def _zarr_claims(image: Mapping[str, Any] | None, attributes: Mapping[str, Any]) -> Sequence[MppClaim]:
    """Return the OME scale of the finest level where its axes have units of length, and the attribute ``mpp``."""
    claims = []
    if image is not None:
        axes = [a for a in image.get("axes", ()) if isinstance(a, Mapping)]
        sizes = {str(a.get("name")): um_per_unit(str(a.get("unit", ""))) for a in axes}
        for steps in (image["datasets"][0].get("coordinateTransformations", ()), image.get("coordinateTransformations", ())):
            for step in steps:
                if step.get("type") == "scale":
                    for axis, factor in zip(axes, step["scale"], strict=True):
                        unit = sizes[str(axis.get("name"))]
                        sizes[str(axis.get("name"))] = None if unit is None else unit * float(factor)
        x, y = sizes.get("x"), sizes.get("y")
        if x and y:
            claims.append(MppClaim("zarr", "OME-Zarr scale", x, y))
    stated = number(attributes.get("mpp"))
    if stated is not None:
        claims.append(MppClaim("zarr", "attribute mpp", stated, stated))
    return claims
