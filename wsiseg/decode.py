"""Convert values from JSON, TOML, Arrow or a worker's message to frozen dataclasses, checked by type hints, and back.

Only this module converts such values from ``dict`` to a type. A record of another version, or a damaged one, is refused with
its place, the field, and what was expected and found. Unknown fields are kept in the field ``other`` of the dataclass and
written again, or refused if it has no such field.
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

__all__ = ["OMITTED", "OTHER", "decode", "encode", "fits", "read_record", "type_words"]

T = TypeVar("T")

OTHER = "other"
"""Name of the field that stores the unknown fields of a record of a newer version."""

OMITTED: Mapping[str, bool] = types.MappingProxyType({"omit": True})
"""Metadata of a dataclass field that is not written if it has its default value."""

_WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null", object: "any value",
    Any: "any value",
}  # fmt: skip


def decode(kind: type[T], raw: object, where: str, error: type[WsisegError] = FormatError) -> T:
    """Return a dataclass made from a plain value, after checking the type of every field.

    Parameters
    ----------
    kind
        A dataclass of ``str``, ``int``, ``float``, ``bool``, ``None``, ``Literal``, tuples, mappings and other dataclasses.
        An integer is accepted for a ``float``; ``true``, infinity and NaN are not numbers.
    raw
        Value as from ``json.loads``.
    where
        File (and position in it), for messages.
    error
        Class of the exception to raise.

    Raises
    ------
    FormatError
        Or ``error``: a field is missing, of another type, or unknown.
    """
    try:
        value: T = _decoded(kind, raw, "")
    except _MisfitError as err:
        raise error(f"{where}: {err}") from None
    return value


def encode(record: Any) -> dict[str, Any]:
    """Return a dataclass as the plain value that ``decode`` reads; the content of ``other`` becomes fields again."""
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
        For messages: what the file should be, such as ``slide record``, and what to do if it is not.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    FormatError
        The file cannot be read, or has another structure.
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
    """Return whether a plain value has the type of a hint."""
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
    """A plain value does not have the type of a hint."""

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
        return _decoded(rest[0], value, name)  # its own message names the wrong field
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
        raise _WrongFieldsError(f"field {under}{first} is unknown in this version; expected only {', '.join(sorted(hints))}.")
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
    """Return the types of a dataclass's fields, and the names of the required ones."""
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
