"""Values read from JSON, TOML, Arrow or a worker's message -> frozen dataclasses, checked by their type hints; and back.

This is the only place where such a value changes from ``dict`` to a type. A record that is another version's, or damaged, is
refused with its place, the field, what was expected and what was found. A dataclass says by its fields what happens to fields
that it does not know: with a field ``other`` they are kept there, and written again; without one they are refused.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from wsiseg.errors import FormatError, WsisegError

__all__ = ["OMITTED", "decode", "encode", "fits", "read_record", "type_words"]

T = TypeVar("T")

OTHER = "other"
"""Name of the field that keeps what a record of a newer version holds beside the fields known here."""

OMITTED: Mapping[str, bool] = types.MappingProxyType({"omit": True})
"""Metadata of a dataclass field that is left out when it is written with its default."""

_WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null", object: "any value",
    Any: "any value",
}  # fmt: skip


def decode(kind: type[T], raw: object, where: str, error: type[WsisegError] = FormatError) -> T:
    """Return a dataclass made of a plain value, with every field of the type that the class states.

    Parameters
    ----------
    kind
        A dataclass of ``str``, ``int``, ``float``, ``bool``, ``None``, ``Literal``, tuples, mappings and other dataclasses.
        A whole number is taken for a ``float``; ``true`` is no number, and neither are infinity and what is not a number.
    raw
        What ``json.loads`` gave.
    where
        The file (and its place), for messages.
    error
        What is raised.

    Raises
    ------
    FormatError
        Or ``error``: a field is missing, of another type, or not known.
    """
    try:
        value: T = _decoded(kind, raw, "")
    except _MisfitError as err:
        raise error(f"{where}: {err}") from None
    return value


def encode(record: Any) -> dict[str, Any]:
    """Return a dataclass as the plain value that ``decode`` reads: tuples are lists, ``other`` stands among the fields."""
    plain: dict[str, Any] = {}
    for f in dataclasses.fields(record):
        value = getattr(record, f.name)
        if f.name == OTHER:
            plain |= value
        elif not (f.metadata.get("omit") and value == f.default):
            plain[f.name] = _encoded(value)
    return plain


def read_record(kind: type[T], path: Path, what: str, advice: str = "") -> T:
    """Return the dataclass in a JSON file.

    Parameters
    ----------
    what, advice
        For the message: what the file is, such as ``slide record``, and what to do if it is none.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    FormatError
        It cannot be read, or is of another form.
    """
    then = f" {advice}" if advice else ""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as err:
        raise FormatError(f"{path}: this {what} is unreadable ({err}).{then}") from err
    try:
        value: T = _decoded(kind, raw, "")
    except _MisfitError as err:
        raise FormatError(f"{path}: not a {what} of this version of wsiseg: {err}{then}") from None
    return value


def fits(value: object, hint: Any) -> bool:
    """Return whether a plain value is of a type."""
    try:
        _decoded(hint, value, "")
    except _MisfitError:
        return False
    return True


def type_words(hint: Any) -> str:
    """Describe a type for a message, such as ``a whole number`` or ``one of ['cpu', 'cuda']``."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {list(args)}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_words(h) for h in args)
    if origin is tuple and args[-1] is not ...:
        return f"a list of {len(args)} values"
    if origin is tuple:
        return "a list of texts" if args[0] is str else f"a list, each {type_words(args[0])}"
    if dataclasses.is_dataclass(hint) or origin in (dict, Mapping):
        return "a group of fields"
    return _WORDS.get(hint, str(hint))


class _MisfitError(Exception):
    """What a plain value lacks."""

    def __init__(self, name: str, hint: Any, value: object) -> None:
        text = repr(value)
        found = text if len(text) <= 60 else f"{text[:60]}..."
        super().__init__(f"expected {f'field {name}' if name else 'it'} to be {type_words(hint)}, found {found}.")


class _WrongFieldsError(_MisfitError):
    def __init__(self, text: str) -> None:
        Exception.__init__(self, text)


def _decoded(hint: Any, value: object, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _record(hint, value, name)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _one_of(args, hint, value, name)
    if origin is Literal:
        good = any(value == v and type(value) is type(v) for v in args)
    elif origin is tuple:
        if isinstance(value, list | tuple) and (args[-1] is ... or len(args) == len(value)):
            kinds = args[:1] * len(value) if args[-1] is ... else args
            return tuple(_decoded(h, v, f"{name}[{k}]") for k, (h, v) in enumerate(zip(kinds, value, strict=True)))
        good = False
    elif origin in (dict, Mapping):
        if isinstance(value, dict) and all(isinstance(k, str) for k in value):
            return {k: _decoded(args[1], v, f"{name}.{k}" if name else k) for k, v in value.items()}
        good = False
    elif hint is float:
        if type(value) is int:
            return float(value)
        good = type(value) is float and math.isfinite(value)
    else:
        good = hint in (Any, object) or type(value) is hint or (hint is type(None) and value is None)
    if not good:
        raise _MisfitError(name, hint, value)
    return value


def _one_of(hints: tuple[Any, ...], whole: Any, value: object, name: str) -> Any:
    if value is None and type(None) in hints:
        return None
    rest = [h for h in hints if h is not type(None)]
    if len(rest) == 1 and (dataclasses.is_dataclass(rest[0]) or typing.get_origin(rest[0]) in (tuple, dict, Mapping)):
        return _decoded(rest[0], value, name)  # its own message says which of its fields is wrong
    for hint in rest:
        if fits(value, hint):
            return _decoded(hint, value, name)
    raise _MisfitError(name, whole, value)


def _record(kind: Any, value: object, name: str) -> Any:
    if not isinstance(value, dict):
        raise _MisfitError(name, kind, value)
    hints, required = _fields_of(kind)
    unknown = {k: v for k, v in value.items() if k not in hints or k == OTHER}
    under = f"{name}." if name else ""
    if unknown and OTHER not in hints:
        first = sorted(map(str, unknown))[0]
        raise _WrongFieldsError(f"field {under}{first} is not known to this version; expected only {', '.join(sorted(hints))}.")
    missing = [k for k in required if k not in value]
    if missing:
        words = type_words(hints[missing[0]])
        raise _WrongFieldsError(
            f"expected field {under}{missing[0]} ({words}), but there is none among {sorted(map(str, value))}."
        )
    given = {k: _decoded(hints[k], v, f"{under}{k}") for k, v in value.items() if k not in unknown}
    return kind(**given, **({OTHER: unknown} if OTHER in hints else {}))


@functools.cache
def _fields_of(kind: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the types of a dataclass's fields, and the names of those that must be there."""
    hints = typing.get_type_hints(kind)
    own = [f for f in dataclasses.fields(kind) if f.init]
    missing = dataclasses.MISSING
    required = tuple(f.name for f in own if f.default is missing and f.default_factory is missing)
    return {f.name: hints[f.name] for f in own}, required


def _encoded(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return encode(value)
    if isinstance(value, tuple | list):
        return [_encoded(v) for v in value]
    if isinstance(value, dict):
        return {k: _encoded(v) for k, v in value.items()}
    return value
