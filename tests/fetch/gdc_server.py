"""A web server on loopback that answers ``/data/<id>`` as the GDC does, and misbehaves as configured; a separate process.

    python tests/fetch/gdc_server.py FOLDER

``FOLDER/<id>`` are the objects; ``FOLDER/rules.json`` maps ids to lists of what the next answers are instead of the right ones
(``"503"``, ``"429 2"`` with Retry-After, ``"404"``, ``"wrong"`` bytes, ``"cut 1000"`` after so many bytes, ``"drop"`` the
connection, ``"cut 1000 always"``), each used once unless it ends in ``always``. ``FOLDER/token``: what the header must be.
``FOLDER/rate``: bytes a second over all connections. Every answer is a line of ``FOLDER/log.jsonl``.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHUNK = 1 << 16


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    folder: Path
    lock = threading.Lock()
    rate_lock = threading.Lock()
    sent_until = 0.0

    def do_GET(self) -> None:
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        rule = self._rule(name)
        wanted = self.headers.get("Range", "")
        token = self.folder / "token"
        if token.is_file() and self.headers.get("X-Auth-Token") != token.read_text().strip():
            self._short(401 if "X-Auth-Token" not in self.headers else 403, name, wanted)
        elif rule and rule[0].isdecimal():
            self._short(int(rule[0]), name, wanted, rule[1] if len(rule) > 1 and rule[1] != "always" else "")
        elif not (self.folder / name).is_file():
            self._short(404, name, wanted)
        elif rule and rule[0] == "drop":
            self._log(name, wanted, 0, 0)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self._object(name, wanted, rule)

    def _object(self, name: str, wanted: str, rule: list[str]) -> None:
        size = (self.folder / name).stat().st_size
        start, stop = 0, size
        ranges = not (self.folder / "no-ranges").exists()
        if wanted and ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(size, int(last) + 1 if last else size)
        end = min(stop, start + int(rule[1])) if rule and rule[0] == "cut" else stop
        self._log(name, wanted, 206 if wanted else 200, end - start)  # first: a test may look as soon as it has the bytes
        self.send_response(206 if wanted and ranges else 200)
        if wanted and ranges:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Disposition", f'attachment; filename="{name}.bin"')
        self.end_headers()
        with (self.folder / name).open("rb") as stream:
            stream.seek(start)
            for at in range(start, end, CHUNK):
                n = min(CHUNK, end - at)
                self._pace(n)
                data = stream.read(n)
                self.wfile.write(bytes(n) if rule and rule[0] == "wrong" else data)
        if end < stop:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def _pace(self, n: int) -> None:
        rate = self.folder / "rate"
        if not rate.is_file():
            return
        with Handler.rate_lock:
            Handler.sent_until = max(Handler.sent_until, time.monotonic()) + n / float(rate.read_text())
            due = Handler.sent_until
        time.sleep(max(0.0, due - time.monotonic()))

    def _rule(self, name: str) -> list[str]:
        path = self.folder / "rules.json"
        with Handler.lock:
            rules: dict[str, list[str]] = json.loads(path.read_text()) if path.is_file() else {}
            left = rules.get(name, [])
            if not left:
                return []
            if not left[0].endswith("always"):
                rules[name] = left[1:]
                path.write_text(json.dumps(rules))
            return left[0].split()

    def _short(self, status: int, name: str, wanted: str, retry_after: str = "") -> None:
        self._log(name, wanted, status, 0)
        self.send_response(status)
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _log(self, name: str, wanted: str, status: int, n: int) -> None:
        line = json.dumps({"id": name, "range": wanted, "status": status, "bytes": n, "time": time.time(),
                           "token": "X-Auth-Token" in self.headers})  # fmt: skip
        with Handler.lock, (self.folder / "log.jsonl").open("a") as log:
            log.write(line + "\n")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class GdcServer:
    """The server as a test sees it."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address

    def put(self, name: str, data: bytes) -> str:
        """Add an object; return its address."""
        (self.folder / name).write_bytes(data)
        return f"{self.address}/data/{name}"

    def rules(self, **rules: list[str]) -> None:
        """Say how the next answers are."""
        (self.folder / "rules.json").write_text(json.dumps(rules))

    def log(self) -> list[dict[str, Any]]:
        """Return what was asked for, and answered."""
        path = self.folder / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def sent(self, name: str) -> int:
        """Return how many bytes of an object were sent, or were about to be when the client left."""
        return sum(e["bytes"] for e in self.log() if e["id"] == name)


@contextlib.contextmanager
def gdc_server(folder: Path) -> Iterator[GdcServer]:
    """Run the server while the block does."""
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield GdcServer(folder, f"http://127.0.0.1:{process.stdout.readline().strip()}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main() -> None:
    Handler.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        server.serve_forever()
    os._exit(0)


if __name__ == "__main__":
    main()
