"""Affine maps from points to a slide: from a matrix, from landmarks, or from a SpatialData element."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError, InputError

__all__ = ["apply_affine", "describe_affine", "fit_landmarks", "read_matrix", "read_spatialdata"]

Float = npt.NDArray[np.float64]

_LANDMARKS = (("fixedX", "fixedY", "alignmentX", "alignmentY"), ("x", "y", "slide_x", "slide_y"))
"""Columns of landmark files, points first, then slide: those of Xenium Explorer, and generic ones."""


def apply_affine(matrix: Float, xy: Float) -> Float:
    """Return points (N, 2) transformed by a 3 x 3 affine matrix."""
    return xy @ matrix[:2, :2].T + matrix[:2, 2]


def describe_affine(matrix: Float) -> str:
    """Return scale, rotation, reflection and translation of an affine map as text."""
    a = matrix[:2, :2]
    scales = np.linalg.svd(a, compute_uv=False)
    angle = float(np.degrees(np.arctan2(a[1, 0], a[0, 0])))
    mirrored = ", mirrored" if np.linalg.det(a) < 0 else ""
    scale = f"{scales[0]:.6g}" if scales[0] - scales[1] < 1e-6 * scales[0] else f"{scales[0]:.6g} and {scales[1]:.6g}"
    moved = f"moved by ({matrix[0, 2]:.2f}, {matrix[1, 2]:.2f}) px"
    return f"level-0 px per unit {scale}, turned by {angle:.2f} degrees{mirrored}, {moved}"


def checked(matrix: Any, where: str) -> Float:
    """Return a 2 x 3 or 3 x 3 matrix as 3 x 3.

    Raises
    ------
    FormatError
        The matrix has another shape, is not finite, is not affine, or has no inverse.
    """
    found = np.asarray(matrix, np.float64)
    if found.shape == (2, 3):
        found = np.vstack([found, [0.0, 0.0, 1.0]])
    if found.shape != (3, 3) or not np.isfinite(found).all():
        raise FormatError(f"{where}: expected a matrix of 3 x 3 or 2 x 3 finite numbers, got shape {found.shape}.")
    if np.abs(found[2] - (0, 0, 1)).max() > 1e-9:
        raise FormatError(f"{where}: expected an affine matrix with the last row 0 0 1, got {found[2].tolist()}.")
    if abs(np.linalg.det(found[:2, :2])) <= 1e-12 * np.abs(found[:2, :2]).max() ** 2:
        raise FormatError(f"{where}: the matrix maps the plane to a line: {found[:2, :2].tolist()} has no inverse.")
    return found


def read_matrix(path: Path) -> Float:
    """Return the 3 x 3 matrix of a text file (numbers separated by commas, spaces or tabs; 2 or 3 rows) or JSON list of rows.

    Raises ``FormatError`` if the file is neither, or as ``checked`` does.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            return checked(json.loads(text), str(path))
        rows = [[float(v) for v in re.split(r"[,;\s]+", line.strip(" ,;\t"))] for line in text.splitlines() if line.strip()]
        return checked(rows, str(path))
    except (OSError, ValueError) as err:
        if isinstance(err, FormatError):
            raise
        raise FormatError(f"{path}: expected a matrix of 3 x 3 or 2 x 3 numbers ({err}).") from err


def fit_landmarks(path: Path, divide: float = 1.0) -> tuple[Float, float, float, int]:
    """Return the least-squares affine map of landmarks, its residual (root mean square and maximum, px), and their number.

    Parameters
    ----------
    path
        CSV with the columns ``x, y`` (of the points) and ``slide_x, slide_y`` (level-0 px), or Xenium Explorer's ``fixedX,
        fixedY, alignmentX, alignmentY``, or four columns in this order without a header.
    divide
        Divisor of the points' coordinates. It is not applied to Xenium Explorer's, which are in px of its picture already.

    Raises
    ------
    FormatError
        There are fewer than three landmarks, or all are on one line, so that no affine map is determined.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(line for line in stream if not line.startswith("#")) if row]
    except (OSError, UnicodeError) as err:
        raise FormatError(f"{path}: cannot be read: {err}") from err
    head = [c.strip() for c in rows[0]] if rows else []
    names = next((n for n in _LANDMARKS if set(n) <= set(head)), None)
    at = [head.index(n) for n in names] if names else [0, 1, 2, 3]
    try:
        points = np.array([[float(row[k]) for k in at] for row in rows[1 if names else 0 :]], np.float64).reshape(-1, 4)
    except (ValueError, IndexError) as err:
        raise FormatError(f"{path}: expected landmarks with the columns {', '.join(_LANDMARKS[1])} ({err}).") from err
    source, target = points[:, :2] / (1.0 if names == _LANDMARKS[0] else divide), points[:, 2:]
    if len(points) < 3 or np.linalg.matrix_rank(source - source.mean(axis=0), tol=1e-6 * max(np.ptp(source), 1e-300)) < 2:
        raise FormatError(f"{path}: expected 3 landmarks or more that are not on one line, got {len(points)}.")
    center, spread = source.mean(axis=0), source.std()
    design = np.column_stack([(source - center) / spread, np.ones(len(source))])
    solved = np.linalg.lstsq(design, target, rcond=None)[0].T
    linear = solved[:, :2] / spread
    matrix = checked(np.column_stack([linear, solved[:, 2] - linear @ center]), str(path))
    off = np.linalg.norm(apply_affine(matrix, source) - target, axis=1)
    return matrix, float(np.sqrt((off**2).mean())), float(off.max()), len(points)


def read_spatialdata(path: Path, system: str = "global") -> Float:
    """Return the 3 x 3 matrix for x and y of a SpatialData element's transformation to a coordinate system.

    Parameters
    ----------
    path
        The element's folder in the ``.zarr`` store (points, shapes, image), or a JSON file with ``coordinateTransformations``.

    Raises
    ------
    FormatError
        There is no transformation to ``system``, or it is not an affine map of the plane.
    """
    facts = _attributes(path)
    listed, finest = _listed(facts)
    found = {str(t.get("output", {}).get("name", "global")): t for t in listed if isinstance(t, dict)}
    if system not in found:
        raise FormatError(f"{path}: no transformation to the coordinate system {system!r}; it has {sorted(found) or 'none'}.")
    try:
        return checked(_matrix(found[system], str(path)) @ (_matrix(finest, str(path)) if finest else np.eye(3)), str(path))
    except (KeyError, TypeError, ValueError, IndexError) as err:
        if isinstance(err, InputError):
            raise
        raise FormatError(
            f"{path}: the transformation to {system!r} does not follow the SpatialData format ({err!r})."
        ) from err


def _attributes(path: Path) -> dict[str, Any]:
    files = [path / "zarr.json", path / ".zattrs"] if path.is_dir() else [path]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        raise FormatError(f"{path}: expected an element of a SpatialData store (zarr.json or .zattrs in it), or a JSON file.")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise FormatError(f"{file}: invalid JSON ({err}).") from err
    found = found.get("attributes", found) if isinstance(found, dict) else {"coordinateTransformations": found}
    return found if isinstance(found, dict) else {}


def _listed(facts: dict[str, Any]) -> tuple[list[Any], dict[str, Any] | None]:
    """Return an element's transformations, and that of the finest level if it is a picture, else None."""
    if "coordinateTransformations" in facts:
        return list(facts["coordinateTransformations"]), None
    scales = facts.get("ome", facts).get("multiscales") or [{}]
    levels = scales[0].get("datasets") or [{}]
    own = levels[0].get("coordinateTransformations") or []
    axes = scales[0].get("axes") or []
    finest = {"type": "sequence", "transformations": [{**t, "axes": axes} for t in own]} if own else None
    return list(scales[0].get("coordinateTransformations") or []), finest


def _axes(transformation: dict[str, Any], side: str) -> list[str]:
    axes = transformation.get(side, {}).get("axes") or transformation.get("axes") or [{"name": "x"}, {"name": "y"}]
    return [str(a["name"] if isinstance(a, dict) else a) for a in axes]


def _matrix(transformation: dict[str, Any], where: str) -> Float:
    """Return the part of a transformation that acts on x and y, 3 x 3."""
    kind = transformation["type"]
    axes = _axes(transformation, "input")
    x, y = axes.index("x"), axes.index("y")
    out = np.eye(3)
    if kind == "scale":
        out[0, 0], out[1, 1] = (float(transformation["scale"][k]) for k in (x, y))
    elif kind == "translation":
        out[:2, 2] = [float(transformation["translation"][k]) for k in (x, y)]
    elif kind == "affine":
        ends = _axes(transformation, "output")
        whole = np.asarray(transformation["affine"], np.float64)
        out[:2] = whole[np.ix_([ends.index("x"), ends.index("y")], [x, y, whole.shape[1] - 1])]
    elif kind == "mapAxis":
        pairs = transformation["mapAxis"]
        out[:2, :2] = [[float(pairs[o] == i) for i in "xy"] for o in "xy"]
    elif kind == "sequence":
        for part in transformation["transformations"]:
            out = _matrix(part, where) @ out
    elif kind != "identity":
        raise FormatError(f"{where}: transformations of type {kind!r} are not supported. Give a matrix (--affine).")
    return out
