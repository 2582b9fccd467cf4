"""All errors that wsiseg raises on purpose.

::

    WsisegError
    |- InputError                  what the user gave cannot be used
    |  |- SlideOpenError           the file is missing, truncated or not a slide
    |  |- MissingMppError          no microns-per-pixel in the file, none given
    |  |- ImplausibleMppError      microns-per-pixel that no usual scan has: the user must confirm them
    |  |- AnisotropicMppError      x and y differ by more than 1 %
    |  |- DuplicateSlideError      two inputs share one slide id (file stem)
    |  |- ManifestError            a manifest row or column is unusable
    |  |- ConfigError              an option has an impossible value
    |  |- EmptyExportError         no nucleus to export, and the format has no empty files
    |  `- FormatError              a table, label image or GeoJSON is not what it claims
    |- SchedulerLostError          the Dask scheduler is gone and did not come back
    |- WorkersLostError            workers ended before they could start
    |- DeviceBrokenError           a GPU stopped computing
    |- TileReadError               pixels of one tile could not be decoded
    |- FetchError                  a slide could not be fetched from its address
    |  |- FetchDeniedError         the server requires a login or a permission (401, 403)
    |  |- FetchMissingError        there is no such object (404, 410)
    |  |- FetchDamagedError        its size or checksum differs from the stated one
    |  `- FetchUnreachableError    no answer, or only requests to retry later, until the time limit
    |- OutputMismatchError         the output folder was made by another config
    |- OutputInUseError            another live run writes to the same folder
    |- WeightsError                weights are missing, altered or of another network
    |- BackendUnavailableError     an optional part (GPU, cuCIM, ...) is not installed
    `- TileComputeError            a tile failed in computation (run/ turns it into an outcome)

A message states what happened, where (slide, tile), what was expected and got, and what to do.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator

__all__ = [
    "AnisotropicMppError",
    "BackendUnavailableError",
    "ConfigError",
    "DeviceBrokenError",
    "DuplicateSlideError",
    "EmptyExportError",
    "FetchDamagedError",
    "FetchDeniedError",
    "FetchError",
    "FetchMissingError",
    "FetchUnreachableError",
    "FormatError",
    "ImplausibleMppError",
    "InputError",
    "ManifestError",
    "MissingMppError",
    "OutputInUseError",
    "OutputMismatchError",
    "SchedulerLostError",
    "SlideOpenError",
    "TileComputeError",
    "TileReadError",
    "WeightsError",
    "WorkersLostError",
    "WsisegError",
    "error_chain",
    "first_names",
    "one_line",
    "plain_text",
]

_SURROGATES = re.compile("[\ud800-\udfff]")


def plain_text(text: str) -> str:
    """Return text that can be written to any file, table or terminal: bytes that are not UTF-8 become ``%E4`` and the like.

    In file names Python represents such a byte as a lone surrogate (U+DC80 to U+DCFF), which UTF-8 cannot encode.
    """
    return _SURROGATES.sub(lambda m: f"%{ord(m[0]) & 0xFF:02X}", text)


def one_line(err: BaseException) -> str:
    """Return an error's kind and message in one line, for tables and logs."""
    return plain_text(" ".join(f"{type(err).__name__}: {err}".split()))


def first_names(names: Collection[str], most: int = 20) -> str:
    """Return names for a message: the first ones, and how many more there are; ``none`` if there are none."""
    shown = ", ".join(itertools.islice(names, most)) or "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def error_chain(err: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, the error that it was raised from, and so on."""
    seen: set[int] = set()
    while err is not None and id(err) not in seen:
        seen.add(id(err))
        yield err
        err = err.__cause__ or err.__context__


class WsisegError(Exception):
    """Base of all errors that wsiseg raises on purpose."""


class InputError(WsisegError, ValueError):
    """What the user gave cannot be used."""


class SlideOpenError(InputError):
    """The file is missing, truncated or not a slide."""


class MissingMppError(InputError):
    """No microns-per-pixel in the file and none given: a physical fact is never guessed."""


class ImplausibleMppError(InputError):
    """The file states microns-per-pixel that no usual scan has, which the user must confirm."""


class AnisotropicMppError(InputError):
    """Microns-per-pixel in x and y differ by more than 1 %."""


class DuplicateSlideError(InputError):
    """Two inputs share one slide id (file stem), so their outputs would overwrite each other."""


class ManifestError(InputError):
    """A manifest row or column cannot be used."""


class ConfigError(InputError):
    """An option has an impossible value."""


class EmptyExportError(InputError):
    """There is no nucleus to export, and the format has no empty files."""


class FormatError(InputError):
    """A table, label image or GeoJSON file is not what it claims to be."""


class TileReadError(WsisegError, OSError):
    """Pixels of one tile could not be decoded."""


class FetchError(WsisegError):
    """A slide could not be fetched from its address."""


class FetchDeniedError(FetchError):
    """The server requires a login, or the given one lacks a permission (HTTP 401, 403)."""


class FetchMissingError(FetchError):
    """There is no such object (HTTP 404, 410)."""


class FetchDamagedError(FetchError):
    """The downloaded file has another size or checksum than was stated."""


class FetchUnreachableError(FetchError):
    """The server did not answer within the time limit, or only with requests to retry later."""


class OutputMismatchError(WsisegError):
    """The output folder was written by a config that gives other results."""


class OutputInUseError(WsisegError):
    """Another live run writes to the same output folder."""


class SchedulerLostError(WsisegError):
    """The connection to the Dask scheduler was lost and could not be restored."""


class WorkersLostError(WsisegError):
    """Workers ended repeatedly before they could start work."""


class DeviceBrokenError(WsisegError):
    """A GPU stopped computing: the process that used it must end."""


class WeightsError(WsisegError):
    """Network weights are missing, altered, or belong to another network."""


class BackendUnavailableError(WsisegError, ImportError):
    """An optional part (GPU, cuCIM, ...) is not installed or finds no device."""


class TileComputeError(WsisegError):
    """A tile could not be computed."""
