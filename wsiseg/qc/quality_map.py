"""Map the predicted quality over a whole slide from its polygon table and a quality model.

No pixels are read: the features of every 64 um cell are computed from the columns of its nuclei (margins, shapes, sizes,
number), and a model of those features alone predicts the probability that the cell is not adequate. This is less accurate than
the prediction for a sampled patch, which also uses pixels; the file of the model gives the accuracy of both.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.qc.patch_features import FEATURES, NUCLEUS_COLUMNS, SMALL_UM2
from wsiseg.qc.predict_quality import QualityModel
from wsiseg.schema.quality import OF_NUCLEI

__all__ = ["QualityMap", "cell_features", "map_png", "quality_map"]

FloatArray = npt.NDArray[np.float64]

CELL_UM = 64.0


MAX_CELLS = 400
"""Maximum cells on the longer side; a longer map is reduced by an integer factor to means weighted by the number of nuclei."""

HEAT = np.array([[0, 137, 123, 50], [124, 179, 66, 90], [255, 214, 0, 130], [230, 81, 0, 160], [183, 28, 28, 190]], np.float64)
"""Red, green, blue, alpha at equal steps of the probability from 0 to 1: faint green for adequate to opaque red."""


@dataclass(frozen=True, slots=True, eq=False)
class QualityMap:
    """Probability that each cell is not adequate, float64 (h, w), NaN for cells without nuclei; ``cell_px``: level-0 px."""

    fail_prob: FloatArray
    cell_px: float


def quality_map(
    columns: Mapping[str, npt.NDArray[Any]], slide_size_px: tuple[int, int], mpp: float, model: QualityModel
) -> QualityMap:
    """Return the map of predicted quality of a slide.

    Parameters
    ----------
    columns
        ``cx`` and ``cy`` (level-0 px) and ``NUCLEUS_COLUMNS`` of all nuclei of the slide.
    slide_size_px
        (width, height), level-0 px.
    mpp
        Micrometers per level-0 px.
    model
        A model of the nuclei's columns alone (``QualityModel.of_nuclei``).
    """
    cell_px = CELL_UM / mpp
    w, h = (max(1, int(np.ceil(side / cell_px))) for side in slide_size_px)
    x, y = (
        np.clip((np.asarray(columns[k], np.float64) // cell_px).astype(np.int64), 0, n - 1) for k, n in (("cx", w), ("cy", h))
    )
    cell, place = np.unique(y * w + x, return_inverse=True)
    features = np.zeros((len(cell), len(FEATURES)))
    features[:, [FEATURES.index(name) for name in OF_NUCLEI]] = cell_features(columns, place, len(cell))
    prob, count = np.zeros(w * h), np.zeros(w * h)
    prob[cell] = model.predict(features) if len(cell) else 0.0
    count[cell] = np.bincount(place, minlength=len(cell))
    k = -(-max(w, h) // MAX_CELLS)
    total, n = (_summed(v.reshape(h, w), k) for v in (prob * count, count))
    return QualityMap(np.divide(total, n, out=np.full(n.shape, np.nan), where=n > 0), cell_px * k)


def cell_features(columns: Mapping[str, npt.NDArray[Any]], cell: npt.NDArray[np.int64], n_cells: int) -> FloatArray:
    """Return the features of the nuclei of each cell, float64 (n_cells, 12) in the order of ``OF_NUCLEI``.

    Parameters
    ----------
    columns
        ``NUCLEUS_COLUMNS`` of all nuclei.
    cell : int64 (N,)
        Cell of each nucleus, 0 to n_cells - 1; each cell has at least one.
    """
    area, perimeter, major, minor, center, material = (np.asarray(columns[k], np.float64) for k in NUCLEUS_COLUMNS)
    area, major, minor = np.maximum(area, 1e-3), np.maximum(major, 1e-3), np.maximum(minor, 1e-3)
    center, material = center / 255, material / 255
    count = np.bincount(cell, minlength=n_cells).astype(np.float64)

    def mean(values: FloatArray) -> FloatArray:
        return np.bincount(cell, values, n_cells) / count

    def quarter(values: FloatArray) -> FloatArray:
        order = np.lexsort((values, cell))
        at = np.concatenate([[0], np.cumsum(count)[:-1]]) + 0.25 * (count - 1)
        low = np.floor(at).astype(np.int64)
        high = np.minimum(low + 1, len(values) - 1)
        return values[order][low] + (at - low) * (values[order][high] - values[order][low])

    logs = np.log(area)
    spread = np.sqrt(np.maximum(mean(logs**2) - mean(logs) ** 2, 0))
    values = {
        "log_count": np.log1p(count),
        "center_mean": mean(center),
        "center_p25": quarter(center),
        "material_mean": mean(material),
        "material_p25": quarter(material),
        "center_minus_material": mean(center - material),
        "disagreement": mean(np.abs(center - material)),
        "roundness_mean": mean((4 * np.pi * area / np.maximum(perimeter, 1e-3) ** 2).clip(0, 2)),
        "fill_mean": mean((4 * area / (np.pi * major * minor)).clip(0, 2)),
        "elongation_mean": mean((major / minor).clip(1, 20)),
        "log_area_sd": spread,
        "small_frac": mean((area < SMALL_UM2).astype(np.float64)),
    }
    return np.column_stack([values[name] for name in OF_NUCLEI])


def _summed(values: FloatArray, k: int) -> FloatArray:
    """Return the sums over squares of k cells."""
    h, w = values.shape
    padded = np.pad(values, ((0, -h % k), (0, -w % k)))
    return padded.reshape(padded.shape[0] // k, k, padded.shape[1] // k, k).sum(axis=(1, 3))


def map_png(found: QualityMap) -> bytes:
    """Return the map as a PNG of one px per cell; cells without nuclei are transparent."""
    from PIL import Image

    place = np.nan_to_num(found.fail_prob).clip(0, 1) * (len(HEAT) - 1)
    low = np.minimum(place.astype(np.int64), len(HEAT) - 2)
    rgba = HEAT[low] + (HEAT[low + 1] - HEAT[low]) * (place - low)[..., None]
    rgba[np.isnan(found.fail_prob)] = 0
    buffer = io.BytesIO()
    Image.fromarray(np.rint(rgba).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
