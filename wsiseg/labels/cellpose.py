"""Read the label image of Cellpose's ``_seg.npy`` without unpickling: nothing that the file names is imported or called.

NumPy stores a dictionary as a pickle, which may run any code when it is loaded. Here its opcodes are only listed (by the
standard library's disassembler) and interpreted on a stack of plain values. An array is rebuilt from the bytes, shape and type
in the file if they are those of an integer array; every other object is kept as the name in the file.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError

__all__ = ["read_seg"]

_KEY = "masks"
_DTYPE = re.compile(r"[iub][1248]")
_ADVICE = "Save its masks as .tif, .png or a plain .npy (np.save of the array itself)."
_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset(
    ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT", "BINUNICODE", "SHORT_BINUNICODE",
     "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
)  # fmt: skip
_MADE_BY = ("REDUCE", "NEWOBJ")


@dataclass(slots=True, eq=False)
class _Named:
    """A call in the file that is not executed: the function's name, with the arguments and state of the call."""

    name: str
    args: Any = None
    state: Any = None


def read_seg(path: Path) -> npt.NDArray[Any]:
    """Return the array ``masks`` of a ``_seg.npy``.

    Raises
    ------
    FormatError
        The file is no ``_seg.npy``, or its masks are not an integer array (H, W).
    """
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(stream)
            if not dtype.hasobject:
                raise ValueError(f"a broken .npy of {dtype} {shape}")
            found = _masks(_followed(stream, path))
        if found is None:
            raise FormatError(f"{path}: a .npy of Python objects without {_KEY!r}, so not Cellpose's _seg.npy. {_ADVICE}")
        return _array(found)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as err:
        if isinstance(err, FormatError):
            raise
        raise FormatError(f"{path}: a .npy of Python objects that cannot be interpreted ({err!r}). {_ADVICE}") from err


def _followed(stream: IO[bytes], path: Path) -> Any:
    """Interpret the opcodes and return the object that unpickling would load, as plain values."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "STOP":
            return stack.pop()
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(str(argument))] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(argument))])
        elif name == "GLOBAL":
            stack.append(_Named(str(argument).replace(" ", ".")))
        elif name not in ("PROTO", "FRAME"):
            _combine(name, stack, path)
    raise FormatError(f"{path}: truncated. {_ADVICE}")


def _combine(name: str, stack: list[Any], path: Path) -> None:
    """Interpret an opcode that makes one value from those on the stack."""
    if name.startswith("EMPTY_"):
        stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[name])
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        n = int(name[-1])
        stack[-n:] = [tuple(stack[-n:])]
    elif name in ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS"):
        items = _since_mark(stack)
        if name == "APPENDS":
            stack[-1].extend(items)
        elif name in ("SETITEMS", "DICT"):
            target = stack[-1] if name == "SETITEMS" else {}
            target.update(_pairs(items))
            if name == "DICT":
                stack.append(target)
        else:
            stack.append(tuple(items) if name == "TUPLE" else items)
    elif name in ("APPEND", "SETITEM", "STACK_GLOBAL", "BUILD", *_MADE_BY):
        last = stack.pop()
        if name == "APPEND":
            stack[-1].append(last)
        elif name == "SETITEM":
            key = stack.pop()
            stack[-1].update(_pairs([key, last]))
        elif name == "STACK_GLOBAL":
            stack.append(_Named(f"{stack.pop()}.{last}"))
        elif name == "BUILD":
            stack[-1].state = last
        else:
            stack.append(_Named(stack.pop().name, last))
    else:
        raise FormatError(f"{path}: a .npy of Python objects with the opcode {name}, which Cellpose does not write. {_ADVICE}")


def _since_mark(stack: list[Any]) -> list[Any]:
    at = max(k for k, value in enumerate(stack) if value is _MARK)
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _pairs(items: list[Any]) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if isinstance(key, str))


def _masks(loaded: Any) -> Any:
    """Return the value of ``masks`` of the dictionary in a 0-d object array."""
    for item in loaded.state[4] if isinstance(loaded, _Named) and isinstance(loaded.state, tuple) else [loaded]:
        if isinstance(item, dict) and _KEY in item:
            return item[_KEY]
    return None


def _array(found: Any) -> npt.NDArray[Any]:
    """Rebuild an array from the state that NumPy stores: version, shape, type, order, bytes."""
    _, shape, dtype, fortran, data = found.state
    code = dtype.args[0]
    order = dtype.state[1] if dtype.state else "<"
    if not isinstance(code, str) or not _DTYPE.fullmatch(code) or order not in ("<", ">", "|", "="):
        raise ValueError(f"expected integer masks, got {code!r}")
    if isinstance(data, _Named) and data.name == "_codecs.encode":  # how protocol 2 stores bytes
        data = str(data.args[0]).encode("latin-1")
    sides = tuple(int(n) for n in shape)
    kind = np.dtype(f"{order}{code}")
    if min(sides, default=1) < 0 or math.prod(sides) * kind.itemsize != len(data):
        raise ValueError(f"expected {sides} of {kind}, got {len(data)} bytes")
    return np.frombuffer(data, kind).reshape(sides, order="F" if fortran else "C")
