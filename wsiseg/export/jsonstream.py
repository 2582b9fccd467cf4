"""JSON files larger than memory: the objects of one array, one after the other, and what stands around it."""

from __future__ import annotations

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

__all__ = ["MAX_OBJECT_CHARS", "iter_lines", "iter_objects", "open_text", "read_json"]

MAX_OBJECT_CHARS = 1 << 28
"""A single object (one nucleus, or all points of one class) longer than this is refused instead of filling memory."""

BLOCK_CHARS = 1 << 20
_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a file, a ``.gz`` or the one file of a ``.zip`` as UTF-8 text.

    Raises
    ------
    FormatError
        Truncated or broken packing, not UTF-8, or a zip with more or less than one file.
    """
    try:
        with path.open("rb") as raw:
            if path.suffix.lower() == ".zip":
                with zipfile.ZipFile(raw) as archive:
                    names = [n for n in archive.namelist() if not n.endswith("/")]
                    if len(names) != 1:
                        raise FormatError(f"{path}: expected a zip of one file, got {len(names)}.")
                    with archive.open(
                        names[0]
                    ) as inner:  # read in place: nothing is unpacked, so its name cannot lead anywhere
                        yield io.TextIOWrapper(inner, encoding="utf-8-sig")
            elif path.suffix.lower() == ".gz":
                yield io.TextIOWrapper(gzip.GzipFile(fileobj=raw), encoding="utf-8-sig")
            else:
                yield io.TextIOWrapper(raw, encoding="utf-8-sig")
    except (gzip.BadGzipFile, zipfile.BadZipFile, EOFError, UnicodeDecodeError, zlib.error) as err:
        raise FormatError(f"{path}: expected UTF-8 text{_packing(path)}, but it is broken or truncated ({err}).") from err


def _packing(path: Path) -> str:
    return {".gz": " in gzip", ".zip": " in a zip"}.get(path.suffix.lower(), "")


class _Text:
    """A sliding window over a text stream that knows where it is."""

    def __init__(self, stream: IO[str], path: Path) -> None:
        self.stream = stream
        self.path = path
        self.text = ""
        self.at = 0
        self.dropped = 0
        self.ended = False

    @property
    def position(self) -> int:
        return self.dropped + self.at

    def more(self) -> bool:
        """Read on; return whether there was anything."""
        if self.at > BLOCK_CHARS:
            self.text, self.dropped, self.at = self.text[self.at :], self.dropped + self.at, 0
        block = self.stream.read(max(BLOCK_CHARS, len(self.text) - self.at))  # doubling: an object is scanned log times at most
        self.ended = not block
        self.text += block
        return bool(block)

    def peek(self) -> str:
        """Return the next character that is not space, "" at the end."""
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
                continue  # a number may go on in the next block
            self.at = end
            return value


def iter_objects(path: Path, key: str, facts: dict[str, Any] | None = None) -> Iterator[tuple[int, Any]]:
    """Yield (number, object) of the array ``key`` of a JSON object, of a top-level array, or the one object itself.

    Parameters
    ----------
    key
        Member of the top-level object that holds the array (``features``, ``cells``).
    facts
        Filled with the other members of the top-level object, those after the array only once it is exhausted.

    Raises
    ------
    FormatError
        Not JSON, truncated, or of another shape; the message gives the character.
    """
    with open_text(path) as stream:
        text = _Text(stream, path)
        first = text.peek()
        if first == "[":
            yield from _array(text, 0)
        elif first == "{":
            yield from _members(text, key, facts if facts is not None else {})
        else:
            raise FormatError(f"{path}: expected JSON that begins with an object or array, got {first or 'an empty file'!r}.")
        if text.peek():
            raise FormatError(f"{path}, character {text.position}: expected the end of the file, got {text.peek()!r}.")


def _members(text: _Text, key: str, facts: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    text.take("{")
    found = False
    while text.peek() != "}":
        name = text.value()
        if not isinstance(name, str):
            raise FormatError(f"{text.path}, character {text.position}: expected a member's name, got {str(name)[:40]!r}.")
        text.take(":")
        if name == key:
            found = True
            yield from _array(text, 0)
        else:
            facts[name] = text.value()
        if text.peek() != ",":
            break
        text.take(",")
    text.take("}")
    if not found:
        yield 0, dict(facts)


def _array(text: _Text, number: int) -> Iterator[tuple[int, Any]]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        yield number, text.value()
        number += 1
        if text.peek() != ",":
            break
        text.take(",")
    text.take("]")


def iter_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, object) of JSON lines; empty lines are skipped. Raises ``FormatError`` with the line."""
    with open_text(path) as stream:
        number = 0
        while line := stream.readline(MAX_OBJECT_CHARS):
            number += 1
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as err:
                raise FormatError(f"{path}, line {number}: expected one JSON document a line ({err}).") from err


def read_json(path: Path) -> Any:
    """Read a JSON file as a whole. Raises ``FormatError``."""
    with open_text(path) as stream:
        try:
            return json.load(stream)
        except (ValueError, RecursionError) as err:
            raise FormatError(f"{path}: expected JSON ({err}).") from err
