"""Libraries that may not be installed: those that an extra of wsiseg brings."""

from __future__ import annotations

import importlib
from types import ModuleType

from wsiseg.errors import BackendUnavailableError

__all__ = ["optional"]


def optional(name: str, extra: str) -> ModuleType:
    """Import a library that an extra of wsiseg brings.

    Raises
    ------
    BackendUnavailableError
        It is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise BackendUnavailableError(
            f"This needs {name}, which is not installed ({err}): pip install 'wsiseg[{extra}]'."
        ) from err
