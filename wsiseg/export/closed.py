"""A DuckDB connection that sees the tables of a run and nothing else: no other file is read, none is written, no network."""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wsiseg.fetch import StoredObject
from wsiseg.libraries import optional

__all__ = ["PREFIX", "Table", "closed_database", "quoted"]

Table = Path | StoredObject
"""A table of a run: a file, or an object of a bucket, of which only what a query needs is read."""

PREFIX = "run://"
"""Begins the names under which a closed connection knows the tables: ``run://nuclei/<slide_id>.parquet``."""

SETTINGS = (
    "autoinstall_known_extensions = false",
    "autoload_known_extensions = false",
    "python_enable_replacements = false",  # variables of the calling program are no tables
    "enable_external_access = false",
    "lock_configuration = true",
)


@contextlib.contextmanager
def closed_database(files: Mapping[str, Table]) -> Iterator[Any]:
    """Yield a connection to an empty database in memory that can read ``files`` and touch no other.

    DuckDB may write to every path that it may read (``allowed_paths``), also from within a ``SELECT``. So it is not given the
    paths, but names of a file system of its own that opens these files for reading and knows no other operation. What does not
    fit in memory is written to a temporary folder, which is removed.

    Parameters
    ----------
    files
        Each table by its name, which begins with ``PREFIX``.

    Raises
    ------
    BackendUnavailableError
        duckdb or fsspec is not installed (extra ``query``).
    """
    duckdb = optional("duckdb", "query")
    with tempfile.TemporaryDirectory(prefix="wsiseg-query-") as spill, duckdb.connect(":memory:") as db:
        db.register_filesystem(_read_only(files))
        db.execute(f"SET temp_directory = {quoted(spill)}")
        db.execute(f"SET allowed_paths = [{', '.join(map(quoted, files))}]")
        for setting in SETTINGS:
            db.execute(f"SET {setting}")
        yield db


class _Shared(io.RawIOBase):
    """An open file with a position for each thread.

    DuckDB moves to a place and reads there in two calls, and many threads do so with one handle: with one position for all, a
    thread would get the bytes of another's place. It does not close all of its files, so the file is closed when it is dropped.
    """

    def __init__(self, file: Any) -> None:
        self._file, self._lock, self._own = file, threading.Lock(), threading.local()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(getattr(self._own, "at", 0))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            with self._lock:
                self._own.at = self._file.seek(offset, whence)
        else:
            self._own.at = offset + (self.tell() if whence == os.SEEK_CUR else 0)
        return self.tell()

    def readinto(self, buffer: Any) -> int:
        with self._lock:
            self._file.seek(self.tell())
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._own.at = self.tell() + len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _read_only(files: Mapping[str, Table]) -> Any:
    """Return an fsspec file system of these files alone."""
    base: Any = optional("fsspec", "query").AbstractFileSystem

    class _Tables(base):
        protocol = PREFIX.removesuffix("://")
        cachable = False

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path if path.startswith(PREFIX) else PREFIX + path

        def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
            if mode != "rb":
                raise PermissionError("tables of a run can only be read")
            table = self._table(path)
            return _Shared(table.open("rb") if isinstance(table, Path) else table.opened())

        def _table(self, path: str) -> Table:
            try:
                return files[self._strip_protocol(path)]
            except KeyError:
                raise FileNotFoundError(path) from None

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            table = self._table(path)
            size = os.path.getsize(table) if isinstance(table, Path) else table.size_bytes
            return {"name": path, "size": size, "type": "file"}

        def exists(self, path: str, **_: Any) -> bool:
            return self._strip_protocol(path) in files

        def isfile(self, path: str) -> bool:
            return self.exists(path)

        def glob(self, path: str, **_: Any) -> list[str]:
            """Return the file of that name: none is a pattern, whatever characters it holds."""
            return [self._strip_protocol(path)] if self.exists(path) else []

        def modified(self, path: str) -> datetime.datetime:
            table = self._table(path)
            return datetime.datetime.fromtimestamp(os.path.getmtime(table) if isinstance(table, Path) else 0, datetime.UTC)

    return _Tables()


def quoted(text: str) -> str:
    """Return a text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"
