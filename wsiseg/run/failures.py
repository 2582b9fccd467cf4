"""The kind of a failure, determined where the error is caught and stored with its text."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from wsiseg.errors import AnisotropicMppError, ImplausibleMppError, MissingMppError, error_chain, one_line
from wsiseg.types import FailureKind

__all__ = ["Failure", "failure_kind", "stop_on_full_disk"]

FACTS = (MissingMppError, ImplausibleMppError, AnisotropicMppError)
"""Errors that are facts of a slide: every machine would find the same."""

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Error numbers of storage that takes no further byte."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a slide or a tile could not be done, in one line, and of what kind the reason is (``wsiseg.types.FailureKind``)."""

    reason: str
    kind: FailureKind = ""


def failure_kind(err: BaseException) -> FailureKind:
    """Return of what kind an error is, or one that it was raised from."""
    if isinstance(err, FACTS):
        return "fact"
    if isinstance(err, ImportError):
        return "library"
    if any(isinstance(e, OSError) and e.errno in FULL_DISK for e in error_chain(err)):
        return "disk"
    text = one_line(err)  # libraries in C lose the number
    return "disk" if any(os.strerror(n) in text for n in FULL_DISK) else ""


def stop_on_full_disk(failure: Failure, folder: Path) -> None:
    """Raise ``OSError`` if the reason is a full disk: the results of further tiles could not be stored in the run folder."""
    if failure.kind == "disk":
        number = next((n for n in FULL_DISK if os.strerror(n) in failure.reason), FULL_DISK[0])
        raise OSError(number, os.strerror(number), str(folder))
