"""Make the metadata of OME-Zarr images (version 0.5 of the OME-NGFF specification)."""

from __future__ import annotations

from typing import Any

__all__ = ["OME_VERSION", "multiscales"]

OME_VERSION = "0.5"


def multiscales(
    name: str, steps_um: list[tuple[float, float]], firsts_um: list[tuple[float, float]], *, channels: bool = False
) -> list[dict[str, Any]]:
    """Return the ``multiscales`` entry of OME-Zarr 0.5 for the levels ``0, 1, ...``.

    Parameters
    ----------
    steps_um, firsts_um
        For each level, as (y, x): distance of pixel centers, and the first pixel's center in the frame whose origin is the
        center of the slide's first pixel (a level-0 index times mpp is a position in this frame).
    channels
        Whether an axis ``c`` comes first.
    """
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] if channels else []
    axes += [{"name": n, "type": "space", "unit": "micrometer"} for n in ("y", "x")]
    one, zero = ([1.0], [0.0]) if channels else ([], [])
    datasets = [
        {
            "path": str(k),
            "coordinateTransformations": [
                {"type": "scale", "scale": [*one, *step]},
                {"type": "translation", "translation": [*zero, *first]},
            ],
        }
        for k, (step, first) in enumerate(zip(steps_um, firsts_um, strict=True))
    ]
    return [{"name": name, "axes": axes, "datasets": datasets}]
