"""Read JSON files larger than memory: the objects of one array, one after the other, and the other members."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from wsiseg.errors import FormatError
from wsiseg.tables.snappy import FRAMED_SNAPPY, unsnapped

__all__ = ["MAX_OBJECT_CHARS", "iter_lines", "iter_objects", "open_text", "read_json"]

MAX_OBJECT_CHARS = 1 << 28
"""A single object (one nucleus, or all points of one class) longer than this is refused, to limit memory."""

BLOCK_CHARS = 1 << 20
_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r\x1e"
"""White space, and the record separator of GeoJSON text sequences (RFC 8142)."""


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a file as text, decompressed if needed: gzip, the one file of a zip, snappy.

    The compression is recognized by the first bytes, not by the name; raw snappy, which has no signature, by the ending
    ``.snappy``.
    Text is UTF-8, or UTF-16 if it begins with a byte order mark.

    Raises
    ------
    FormatError
        The compression is truncated or damaged, the encoding another one, or a zip does not contain exactly one file.
    """
    packing = ""
    try:
        with path.open("rb") as raw:
            magic = raw.read(10)
            raw.seek(0)
            packing = _packing(magic, path)
            with _unpacked(raw, packing, path) as stream:
                buffered = io.BufferedReader(stream)
                begin = buffered.peek(4)[:4]
                wide = begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
                yield io.TextIOWrapper(buffered, encoding="utf-16" if wide else "utf-8-sig")
    except (gzip.BadGzipFile, zipfile.BadZipFile, EOFError, UnicodeError, zlib.error) as err:
        packed = f" in {packing}" if packing else ""
        raise FormatError(f"{path}: expected UTF-8 text{packed}, but it is broken or truncated ({err}).") from err
    except OSError as err:
        raise FormatError(f"{path}: cannot be read: {err.strerror or err}") from err


def _packing(magic: bytes, path: Path) -> str:
    if magic.startswith(b"\x1f\x8b"):
        return "gzip"
    if magic.startswith(b"PK\x03\x04"):
        return "a zip"
    if magic == FRAMED_SNAPPY or path.name.lower().endswith(".snappy"):
        return "snappy"
    if magic.startswith((b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        kind = {b"B": "bzip2", b"\xfd": "xz", b"\x28": "zstandard"}[magic[:1]]
        raise FormatError(f"{path}: compressed with {kind}, which is not supported. Decompress it first.")
    return ""


@contextmanager
def _unpacked(raw: IO[bytes], packing: str, path: Path) -> Iterator[Any]:
    if packing == "gzip":
        yield gzip.GzipFile(fileobj=raw)
    elif packing == "snappy":
        yield io.BytesIO(unsnapped(raw.read(), path))
    elif packing:
        with zipfile.ZipFile(raw) as archive:
            names = [n for n in archive.namelist() if not n.endswith("/")]
            if len(names) != 1:
                raise FormatError(f"{path}: expected a zip of one file, got {len(names)}.")
            with archive.open(names[0]) as inner:  # read from the zip, not extracted: the name in it is never used as a path
                yield inner
    else:
        yield raw


class _Text:
    """A sliding window over a text stream that keeps its position."""

    def __init__(self, stream: IO[str], path: Path, slips: dict[str, int]) -> None:
        self.stream = stream
        self.path = path
        self.slips = slips
        self.text = ""
        self.at = 0
        self.dropped = 0
        self.ended = False

    @property
    def position(self) -> int:
        return self.dropped + self.at

    def more(self) -> bool:
        """Read the next block; return whether there was one."""
        if self.at > BLOCK_CHARS:
            self.text, self.dropped, self.at = self.text[self.at :], self.dropped + self.at, 0
        block = self.stream.read(max(BLOCK_CHARS, len(self.text) - self.at))  # doubling: an object is scanned log times at most
        self.ended = not block
        self.text += block
        return bool(block)

    def peek(self) -> str:
        """Return the next character that is not white space, "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, expected: str) -> None:
        got = self.peek()
        if got != expected:
            raise FormatError(
                f"{self.path}, character {self.position}: expected {expected!r}, got {got or 'the end of the file'!r}."
            )
        self.at += 1

    def value(self) -> Any:
        """Return the next JSON value."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as err:
                if isinstance(err, RecursionError) or len(self.text) - self.at > MAX_OBJECT_CHARS or not self.more():
                    where = f"{self.path}, character {self.position}"
                    raise FormatError(
                        f"{where}: expected a JSON value, but it is broken, truncated or too deep ({err})."
                    ) from err
                continue
            if end == len(self.text) and not self.ended and self.more():
                continue  # a number may continue in the next block
            self.at = end
            return value

    def name(self) -> str:
        """Read a member's name and the colon."""
        name = self.value()
        if not isinstance(name, str):
            raise FormatError(f"{self.path}, character {self.position}: expected a member's name, got {str(name)[:40]!r}.")
        self.take(":")
        return name

    def comma(self, end: str) -> bool:
        """Read a comma and return whether another item follows. A trailing comma is skipped and counted."""
        if self.peek() != ",":
            return False
        self.take(",")
        if self.peek() == end:
            self.slips["trailing commas"] = self.slips.get("trailing commas", 0) + 1
            return False
        return True

    def array(self) -> Iterator[Any]:
        """Yield the items of an array."""
        self.take("[")
        if self.peek() != "]":
            yield self.value()
            while self.comma("]"):
                yield self.value()
        self.take("]")

    def items(self) -> Iterator[Any]:
        """Yield the items of an array or the values of an object; null yields nothing."""
        if self.peek() != "{":
            if self.peek() == "[":
                yield from self.array()
            elif self.value() is not None:
                raise FormatError(f"{self.path}, character {self.position}: expected an array.")
            return
        self.take("{")
        while self.peek() != "}":
            self.name()
            yield self.value()
            if not self.comma("}"):
                break
        self.take("}")


def iter_objects(
    path: Path, key: str | tuple[str, ...], facts: dict[str, Any] | None = None, slips: dict[str, int] | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield (number, object) of the array ``key`` of a JSON object, of a top-level array, or the one object itself.

    A file of several top-level values (JSON lines, GeoJSON text sequences) is read as if they were items of one array.

    Parameters
    ----------
    key
        Name of the member of the top-level object that is the array (``features``, ``cells``), or several such names. If the
        member is an object (``nuc`` of HoVer-Net), its values are yielded; null yields nothing.
    facts
        Filled with the other members of the top-level object, those after the array only once it is exhausted.
    slips
        Filled with the number of trailing commas, which are skipped.

    Raises
    ------
    FormatError
        The file is not JSON, truncated, or of another structure; the message states the character.
    """
    keys = (key,) if isinstance(key, str) else key
    facts = facts if facts is not None else {}
    number = 0
    with open_text(path) as stream:
        text = _Text(stream, path, slips if slips is not None else {})
        first = text.peek()
        if not first:
            raise FormatError(f"{path}: expected JSON that begins with an object or array, got an empty file.")
        while first:
            if first == "[":
                items = text.array()
            elif first == "{":
                items = _members(text, keys, facts)
            else:
                raise FormatError(
                    f"{path}, character {text.position}: expected JSON that begins with an object or array, got {first!r}."
                )
            for item in items:
                yield number, item
                number += 1
            first = text.peek()


def _members(text: _Text, keys: tuple[str, ...], facts: dict[str, Any]) -> Iterator[Any]:
    text.take("{")
    found = False
    own: dict[str, Any] = {}
    while text.peek() != "}":
        name = text.name()
        if name in keys:
            found = True
            yield from text.items()
        else:
            facts[name] = own[name] = text.value()
        if not text.comma("}"):
            break
    text.take("}")
    if not found:
        yield own


def iter_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, object) of JSON lines; empty lines are skipped. ``FormatError`` names the line."""
    with open_text(path) as stream:
        number = 0
        while line := stream.readline(MAX_OBJECT_CHARS):
            number += 1
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as err:
                raise FormatError(f"{path}, line {number}: expected one JSON document per line ({err}).") from err


def read_json(path: Path) -> Any:
    """Read a JSON file as a whole. Raises ``FormatError``."""
    with open_text(path) as stream:
        try:
            return json.load(stream)
        except (ValueError, RecursionError) as err:
            raise FormatError(f"{path}: expected JSON ({err}).") from err
