"""Public functions: check the arguments, then call the code for the kind of array (NumPy or CuPy)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from wsiseg.backend import backend_of
from wsiseg.errors import InputError
from wsiseg.separate.params import SeparateParams
from wsiseg.types import Instances

__all__ = ["find_markers", "separate"]

Array = Any


def separate(prob: Array, params: SeparateParams) -> Instances:
    """Separate probability maps into instances, by the definition in ``wsiseg.separate`` (all ten steps).

    Parameters
    ----------
    prob : uint8 (2, H, W)
        Center (0) and material (1) maps, 0..255 for 0..1.
    params
        Resolved integers (``resolve_params``).

    Returns
    -------
    Instances
        ``labels`` int32 (H, W), 0 background, 1..N in raster order of markers, each 4-connected and containing its marker;
        ``anchors`` int32 (N, 2), (x, y) of the markers in window px.

    Raises
    ------
    InputError
        ``prob`` is not uint8 (2, H, W), is empty, or has 2^31 pixels or more.
    BackendUnavailableError
        ``prob`` is a CuPy array and the kernels cannot be loaded.
    """
    labels, anchors = _kernels(prob).separate(prob[0], prob[1], params)
    return Instances(labels=labels, anchors=anchors)


def find_markers(prob: Array, params: SeparateParams) -> Array:
    """Return the markers of probability maps (steps 1 to 6 of the definition), before any size limit.

    Parameters
    ----------
    prob : uint8 (2, H, W)
        Center (0) and material (1) maps.
    params
        Resolved integers.

    Returns
    -------
    anchors : int32 (N, 2)
        (x, y) in window px, raster order.

    Raises
    ------
    InputError, BackendUnavailableError
        See ``separate``.
    """
    return _kernels(prob).find_markers(prob[0], prob[1], params)


def _kernels(prob: Array) -> ModuleType:
    if getattr(prob, "ndim", 0) != 3 or prob.shape[0] != 2 or str(prob.dtype) != "uint8" or not 0 < prob[0].size < 2**31:
        got = f"{getattr(prob, 'dtype', type(prob).__name__)} {getattr(prob, 'shape', '')}"
        raise InputError(f"separate: expected probability maps uint8 (2, H, W), not empty, under 2^31 px, got {got}.")
    if backend_of(prob) is not None:
        from wsiseg.separate import _cuda

        return _cuda
    from wsiseg.separate import _cpu

    return _cpu
