"""Convert numbers and rings to text, a whole column at a time with Arrow functions, without a Python loop over nuclei."""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["concat", "decimal_text", "join_rings", "number_text", "nucleus_uuids", "text_bytes"]

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "wsiseg:nuclei")
"""Every nucleus has the UUID ``uuid5(uuid5(NAMESPACE, slide_id), str(nucleus_id))`` (RFC 9562), the same in every export."""


def decimal_text(values: npt.NDArray[np.float64], decimals: int, *, trim: bool) -> pa.StringArray:
    """Return numbers rounded to ``decimals`` places (half to even) as text, e.g. ``-3.05``.

    Parameters
    ----------
    values : float64 (N,)
        Finite, with absolute values below 2^53 / 10^decimals.
    trim
        Omit trailing zeros (``3.5``, ``3``); otherwise every number has ``decimals`` places (``3.50``).
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    base = 10**decimals
    scaled = np.rint(values * base).astype(np.int64)
    whole, part = np.divmod(np.abs(scaled), base)
    text = pc.cast(pa.array(whole), pa.string())
    if part.any() or not trim:
        tails = [f".{k:0{decimals}d}" for k in range(base)]
        if trim:
            tails = [t.rstrip("0").rstrip(".") for t in tails]
        text = concat(text, pa.array(tails).take(pa.array(part)))
    negative = scaled < 0
    if negative.any():
        text = concat(pa.array(["", "-"]).take(pa.array(negative.astype(np.int8))), text)
    return text


def number_text(values: pa.Array | pa.ChunkedArray) -> pa.StringArray:
    """Return a numeric column as JSON: the shortest text of the same value; null, NaN and infinity as ``"NaN"`` etc."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    text = pc.cast(values, pa.string())
    if pa.types.is_floating(values.type):
        finite = pc.is_finite(values)
        if not pc.all(pc.fill_null(finite, True)).as_py():
            names = pc.if_else(pc.is_nan(values), '"NaN"', pc.if_else(pc.greater(values, 0), '"Infinity"', '"-Infinity"'))
            text = pc.if_else(finite, text, names)
    return pc.fill_null(text, '"NaN"')


def join_rings(
    x: pa.StringArray, y: pa.StringArray, ring_offsets: npt.NDArray[np.int64], between: str, after: str
) -> pa.StringArray:
    """Return one text per ring: x, ``between``, y of each vertex, with ``after`` between vertices."""
    import pyarrow as pa
    import pyarrow.compute as pc

    points = pc.binary_join_element_wise(x, y, between)
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(ring_offsets.astype(np.int32)), points), after)


def concat(*pieces: Any) -> pa.StringArray:
    """Return columns of text concatenated row by row; a plain ``str`` is repeated in every row."""
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(*pieces, "")


def text_bytes(text: pa.StringArray) -> memoryview:
    """Return the UTF-8 bytes of all rows, one after the other, without copying."""
    if len(text) == 0:
        return memoryview(b"")
    offsets = np.frombuffer(text.buffers()[1], np.int32)[text.offset : text.offset + len(text) + 1]
    return memoryview(text.buffers()[2])[int(offsets[0]) : int(offsets[-1])]


def nucleus_uuids(slide_id: str, nucleus_id: npt.NDArray[np.int64]) -> pa.StringArray:
    """Return each nucleus's UUID (version 5) as text, the same as ``uuid.uuid5`` gives."""
    import pyarrow as pa

    n = len(nucleus_id)
    prefix = uuid.uuid5(NAMESPACE, slide_id).bytes
    # hashlib has no array function, so this loops; calling uuid.uuid5 for each nucleus would take five times as long
    joined = b"".join([hashlib.sha1(prefix + b"%d" % k, usedforsecurity=False).digest()[:16] for k in nucleus_id.tolist()])
    raw = np.frombuffer(joined, np.uint8).reshape(n, 16).copy()
    raw[:, 6] = (raw[:, 6] & 0x0F) | 0x50
    raw[:, 8] = (raw[:, 8] & 0x3F) | 0x80
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = np.full((n, 36), ord("-"), np.uint8)
    places = [k for k in range(36) if k not in (8, 13, 18, 23)]
    text[:, places[0::2]], text[:, places[1::2]] = digits[raw >> 4], digits[raw & 15]
    offsets = np.arange(n + 1, dtype=np.int32) * np.int32(36)
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(text))
