"""A DuckDB connection that can read the tables of a run but no other files, and has no write or network access."""

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
"""A table of a run: a file, or an object in a bucket. Only the parts that a query needs are read."""

PREFIX = "run://"
"""Prefix of the names of tables in a closed connection: ``run://nuclei/<slide_id>.parquet``."""

SETTINGS = (
    "autoinstall_known_extensions = false",
    "autoload_known_extensions = false",
    "python_enable_replacements = false",  # variables of the calling program must not be tables
    "enable_external_access = false",
    "lock_configuration = true",
)


@contextlib.contextmanager
def closed_database(files: Mapping[str, Table]) -> Iterator[Any]:
    """Yield a connection to an empty database in memory that can read ``files`` and access no others.

    DuckDB can write to every path that it can read (``allowed_paths``), even within a ``SELECT``. Therefore it gets names in a
    file system of its own, which can only open these files for reading, instead of paths. Data that do not fit in memory are
    written to a temporary folder, which is removed.

    Parameters
    ----------
    files
        Each table by its name, which starts with ``PREFIX``.

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
    """An open file with a separate position for each thread.

    DuckDB seeks and reads in two calls, and does so from many threads with one handle. With a common position, a thread could
    read at the position of another. DuckDB does not close all of its files, so the file is closed when the object is deleted.
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
    """Return an fsspec file system that contains only these files."""
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
            """Return the file with exactly this name; special characters are not a pattern."""
            return [self._strip_protocol(path)] if self.exists(path) else []

        def modified(self, path: str) -> datetime.datetime:
            table = self._table(path)
            return datetime.datetime.fromtimestamp(os.path.getmtime(table) if isinstance(table, Path) else 0, datetime.UTC)

    return _Tables()


def quoted(text: str) -> str:
    """Return the text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
