"""Import of optional libraries, which extras of wsiseg install."""

from __future__ import annotations

import importlib
from types import ModuleType

from wsiseg.errors import BackendUnavailableError

__all__ = ["optional"]


def optional(name: str, extra: str) -> ModuleType:
    """Import and return an optional library.

    Parameters
    ----------
    name
        Name of the module.
    extra
        Extra of wsiseg that installs it.

    Raises
    ------
    BackendUnavailableError
        The library is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise BackendUnavailableError(
            f"The package {name} is needed but not installed ({err}). Install it: pip install 'wsiseg[{extra}]'."
        ) from err
