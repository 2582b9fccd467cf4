"""Run the review page on a socket of this machine."""

from __future__ import annotations

import secrets
import socket
from types import TracebackType
from typing import Any

from wsiseg.errors import BackendUnavailableError, InputError
from wsiseg.qc.review.app import ReviewSource, create_app
from wsiseg.qc.review.session import ReviewSession

__all__ = ["ReviewServer", "free_port"]


def free_port(wanted: int) -> int:
    """Return the wanted TCP port if it is free on 127.0.0.1, otherwise 0 (any port)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted


class ReviewServer:
    """A server of the review page on 127.0.0.1; use it as a context manager.

    Parameters
    ----------
    port
        TCP port; 0 takes any free one.

    Raises
    ------
    BackendUnavailableError
        Starlette or Uvicorn is not installed.
    InputError
        The port is taken.
    """

    def __init__(
        self, session: ReviewSession, source: ReviewSource, *, port: int = 0, title: str = "", token: str = ""
    ) -> None:
        try:
            import uvicorn

            self.token = token or secrets.token_urlsafe(24)
            # asyncio disables Nagle's algorithm only if the protocol is given; with it every response is delayed by 40 ms
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                self._socket.bind(("127.0.0.1", port))
            except OSError as err:
                self._socket.close()
                raise InputError(
                    f"Port {port} of this machine cannot be used ({err.strerror}). Choose another --port, or 0 (any free one)."
                ) from err
            self.port = int(self._socket.getsockname()[1])
            hosts = frozenset({f"127.0.0.1:{self.port}", f"localhost:{self.port}"})
            app = create_app(session, source, token=self.token, hosts=hosts, title=title)
            config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2)
        except ImportError as err:
            raise BackendUnavailableError("The review page needs Starlette and Uvicorn: pip install 'wsiseg[review]'.") from err
        self._server: Any = uvicorn.Server(config)
        self._session = session

    @property
    def url(self) -> str:
        """Address to open in a browser, token included."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def run(self) -> None:
        """Serve requests until ``stop`` is called or Ctrl-C is pressed."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Make ``run`` return; may be called from another thread."""
        self._server.should_exit = True

    def __enter__(self) -> ReviewServer:
        """Return the server."""
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Close the socket and the marks file."""
        self._socket.close()
        self._session.close()
