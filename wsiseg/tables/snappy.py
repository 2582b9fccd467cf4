"""Decompress snappy with pyarrow's codec, for ``cells.json.snappy`` of CellViT."""

from __future__ import annotations

from pathlib import Path

from wsiseg.errors import FormatError

__all__ = ["FRAMED_SNAPPY", "unsnapped"]

FRAMED_SNAPPY = b"\xff\x06\x00\x00sNaPpY"
"""First bytes of a file in snappy's framing format; raw snappy has no signature."""

MAX_BYTES = 1 << 33


def unsnapped(data: bytes, path: Path) -> bytes:
    """Return the decompressed bytes of raw or framed snappy.

    Raises
    ------
    FormatError
        The data is truncated or damaged, or would decompress to more than 8 GiB.
    """
    if not data.startswith(FRAMED_SNAPPY):
        return _block(data, path)
    parts: list[bytes] = []
    at = len(FRAMED_SNAPPY)
    while at < len(data):
        kind, size = data[at], int.from_bytes(data[at + 1 : at + 4], "little")
        chunk = data[at + 4 : at + 4 + size]
        at += 4 + size
        if len(chunk) < size:
            raise FormatError(f"{path}: expected framed snappy, but it is truncated.")
        if kind == 0:
            parts.append(_block(chunk[4:], path))  # the first 4 bytes are a checksum
        elif kind == 1:
            parts.append(chunk[4:])
        elif kind < 0x80:
            raise FormatError(f"{path}: expected framed snappy, got a chunk of the reserved kind {kind}.")
    return b"".join(parts)


def _block(data: bytes, path: Path) -> bytes:
    import pyarrow as pa

    size = shift = 0
    for byte in data[:5]:  # the decompressed size, 7 bits a byte, lowest first
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if size > MAX_BYTES:
        raise FormatError(f"{path}: expected snappy that unpacks to at most {MAX_BYTES} bytes, got {size}.")
    try:
        return bytes(pa.decompress(data, decompressed_size=size, codec="snappy", asbytes=True)) if data else b""
    except (pa.ArrowException, OSError) as err:
        raise FormatError(f"{path}: expected snappy, but it is truncated or broken ({err}).") from err
