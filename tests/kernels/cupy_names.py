"""Which names of CuPy the package uses, with which keywords, and whether the CuPy that is installed has them.

    python -m tests.kernels.cupy_names    # with CuPy installed (no GPU): check, and write cupy_names.json with its version

Attributes of the module are found in the source; methods of its objects (a stream's ``synchronize``) are listed in ``OBJECTS``.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("cupy_names.json")
SOURCES = (*sorted((ROOT / "wsiseg").rglob("*.py")), *sorted((ROOT / "benchmarks").glob("gpu_*.py")))

MODULES = {"cupy", "_cupy", "xp"}
"""Names that stand for the module wherever they occur: the module itself, ``self._cupy``, and what ``array_namespace`` gave."""
MAKERS = {"_cupy", "array_namespace"}
"""Functions that return the module."""

OBJECTS: dict[str, list[str]] = {
    "RawModule.compile": [],
    "RawModule.get_function": [],
    "RawKernel.__call__": [],
    "cuda.Device.__enter__": [],
    "cuda.Event.record": [],
    "cuda.Event.synchronize": [],
    "cuda.PythonFunctionAllocator.malloc": [],
    "cuda.Stream.__enter__": [],
    "cuda.Stream.synchronize": [],
    "ndarray.__dlpack__": [],
    "ndarray.any": ["axis"],
    "ndarray.astype": [],
    "ndarray.copy": [],
    "ndarray.device": [],
    "ndarray.get": ["out"],
    "ndarray.set": ["stream"],
}
"""Methods of CuPy's objects, and the keywords that they are given."""


def used() -> dict[str, list[str]]:
    """Return the attributes of CuPy that the source names, each with the keywords of its calls."""
    names: dict[str, set[str]] = {name: set(keywords) for name, keywords in OBJECTS.items()}
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        short = dict(_assigned(tree))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or id(node) in inner:
                continue
            name = _chain(node, short)
            if name:
                call = calls.get(id(node))
                names.setdefault(name, set()).update(k.arg for k in call.keywords if k.arg) if call else names.setdefault(
                    name, set()
                )
    return {name: sorted(keywords) for name, keywords in sorted(names.items())}


def _assigned(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield local names of parts of the module: ``cuda = _cupy().cuda``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Attribute):
            name = _chain(node.value, {})
            if name:
                yield node.targets[0].id, name


def _chain(node: ast.expr, short: dict[str, str]) -> str:
    """Return ``cuda.Event`` for ``cupy.cuda.Event``; empty: not of CuPy."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        if node.attr in MODULES:
            return ".".join(reversed(parts))
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id in MODULES:
        return ".".join(reversed(parts))
    if isinstance(node, ast.Name) and node.id in short:
        return ".".join([short[node.id], *reversed(parts)])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS:
        return ".".join(reversed(parts))
    return ""


def missing(names: dict[str, list[str]]) -> list[str]:
    """Return what the installed CuPy lacks: names, and keywords that a call does not take."""
    cupy = importlib.import_module("cupy")
    return [problem for name, keywords in names.items() for problem in _problems(cupy, name, keywords)]


def _problems(cupy: Any, name: str, keywords: list[str]) -> list[str]:
    thing = cupy
    for part in name.split("."):
        if not hasattr(thing, part):
            return [name]
        thing = getattr(thing, part)
    taken = _parameters(thing)
    return [f"{name}({keyword}=)" for keyword in keywords if keyword not in taken]


def _parameters(thing: Any) -> set[str]:
    """Return the names of parameters: of the signature, or of the first line of a compiled function's docstring."""
    try:
        return set(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        first = (thing.__doc__ or "").strip().split("\n\n")[0]
        return set(re.findall(r"(\w+)\s*(?:=[^,()]+|=\(\))?\s*[,)]", first))


def installed() -> dict[str, str]:
    """Return which of CuPy's wheels is installed, and its version."""
    names = ("cupy-cuda13x", "cupy-cuda12x")
    found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return {name: found[name] for name in names if name in found}


def main() -> int:
    """Check the installed CuPy; where nothing is missing, write the list with its version."""
    names = used()
    lacks = missing(names)
    print("\n".join(lacks) or f"{len(names)} names, all in {installed()}")
    if not lacks:
        before = json.loads(LIST.read_text(encoding="utf-8"))["checked_with"] if LIST.exists() else {}
        text = json.dumps({"checked_with": {**before, **installed()}, "names": names}, indent=1)
        LIST.write_text(text + "\n", encoding="utf-8")
    return 1 if lacks else 0


if __name__ == "__main__":
    sys.exit(main())
