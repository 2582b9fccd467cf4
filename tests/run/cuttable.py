"""A TCP proxy that can be cut: the network between two hosts, on one."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class Cuttable:
    """Forwards connections to ``target``; ``cut`` resets them all and refuses more, ``freeze`` lets nothing through."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._flows = threading.Event()
        self._flows.set()
        self._up = True
        self.carried_bytes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset what is open, and refuse what comes."""
        self._up = False
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closing sends a reset
                end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._open.clear()

    def freeze(self) -> None:
        """Drop all packets without an error."""
        self._flows.clear()

    def heal(self) -> None:
        """Let connections through again."""
        self._up = True
        self._flows.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if not self._up:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(self.target)
                except OSError:
                    near.close()
                    continue
                self._open |= {near, far}
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                self._flows.wait()
                self.carried_bytes += len(data)
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):  # each step alone: without the first, a side that still reads is never told
                end.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                end.close()
            self._open.discard(end)

    def __enter__(self) -> Cuttable:
        """Return the proxy."""
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Close everything."""
        self._listener.close()
        self.cut()
        self._flows.set()
