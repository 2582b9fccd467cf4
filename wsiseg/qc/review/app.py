"""The review page over HTTP: a token opens it, only this machine and only this page may talk to it."""

from __future__ import annotations

import hmac
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import numpy as np
import numpy.typing as npt

from wsiseg.errors import InputError, WsisegError
from wsiseg.qc.review.session import ReviewSession
from wsiseg.types import Box

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["ReviewSource", "create_app"]

MAX_BODY_BYTES = 16_384
MAX_VIEW_PX = 16_384
MAX_NUCLEI = 30_000

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class ReviewSource:
    """Where pictures come from; all callables may be called from several threads.

    Attributes
    ----------
    patch_picture
        (patch id, with contours) -> PNG bytes of the tissue, or of the contour layer.
    slide_info
        slide id -> facts the page shows and needs: width_px, height_px, mpp, reasons, ...; ``error`` where it cannot be shown.
    slide_tile
        (slide id, level, column, row) -> JPEG of a 256 px tile; level k is the slide shrunk 2**k times.
    slide_nuclei
        (slide id, level-0 box) -> rings as (xy float (V, 2), ring_offsets (N + 1,)).
    """

    patch_picture: Callable[[str, bool], bytes]
    slide_info: Callable[[str], dict[str, Any]]
    slide_tile: Callable[[str, int, int, int], bytes]
    slide_nuclei: Callable[[str, Box], tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]


class _Guard:
    """Lets in only our host name, no other site, and who has the token (once in the address, then as a cookie)."""

    def __init__(self, app: ASGIApp, token: str, hosts: frozenset[str], cookie: str) -> None:
        self.app, self.token, self.hosts, self.cookie = app, token, hosts, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        refusal = self._judge(scope)
        await (refusal or self.app)(scope, receive, _with_headers(send))

    def _judge(self, scope: Scope) -> Response | None:
        from starlette.requests import cookie_parser
        from starlette.responses import PlainTextResponse, RedirectResponse

        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        if headers.get("host", "") not in self.hosts:
            # a foreign name that resolves to this machine (DNS rebinding) would make us part of that site
            return PlainTextResponse("This server answers to its own address only.", 421)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("Method not allowed.", 405)
        origin = headers.get("origin")
        if origin is not None and origin not in {f"http://{h}" for h in self.hosts}:
            return PlainTextResponse("Another site may not use this server.", 403)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and given:
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                return PlainTextResponse("Foreign token: open the address that `wsiseg qc review` printed last.", 403)
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
            return answer
        cookie = cookie_parser(headers.get("cookie", "")).get(self.cookie, "")
        if not hmac.compare_digest(cookie.encode(), self.token.encode()):
            return PlainTextResponse("No token: open the address that `wsiseg qc review` printed.", 403)
        return None


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Any) -> None:
        if message["type"] == "http.response.start":
            extra = [(k.lower().encode(), v.encode()) for k, v in SECURITY_HEADERS.items()]
            message = {**message, "headers": [*message["headers"], *extra]}
        await send(message)

    return wrapped


class _Pages:
    """The handlers. Sync ones run in Starlette's thread pool, so a slow slide does not hold up the patches."""

    def __init__(self, session: ReviewSession, source: ReviewSource, title: str) -> None:
        self.session, self.source, self.title = session, source, title
        folder = files("wsiseg.qc.review")
        self.static = {
            "/": (folder.joinpath("page.html").read_bytes(), "text/html; charset=utf-8"),
            "/review.js": (folder.joinpath("review.js").read_bytes(), "text/javascript; charset=utf-8"),
            "/viewer.js": (folder.joinpath("viewer.js").read_bytes(), "text/javascript; charset=utf-8"),
            "/review.css": (folder.joinpath("review.css").read_bytes(), "text/css; charset=utf-8"),
        }

    async def page(self, request: Request) -> Response:
        """Answer with a file of the page."""
        data, kind = self.static[request.url.path]
        return _bytes(data, kind, "no-cache")

    async def state(self, request: Request) -> Response:
        """Answer what comes next in a queue."""
        queue = request.query_params.get("queue", "patches")
        facts = {"reviewer": self.session.reviewer, "title": self.title}
        return _json({**self.session.state(queue), **facts})

    async def mark(self, request: Request) -> Response:
        """Record a mark or an undo."""
        from starlette.concurrency import run_in_threadpool

        body = await _small_json(request)
        queue, item, word = (str(body.get(k, "")) for k in ("queue", "item", "mark"))
        if word == "undo":
            return _json(await run_in_threadpool(self.session.undo, queue))  # type: ignore[arg-type]
        seconds = body.get("seconds", 0)
        if not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
            raise InputError(f"Expected seconds of at least 0, got {seconds!r}.")
        comment = str(body.get("comment", ""))
        return _json(await run_in_threadpool(self.session.mark, queue, item, word, comment, float(seconds)))  # type: ignore[arg-type]

    def patch(self, request: Request) -> Response:
        """Answer with a picture of a patch."""
        name = request.path_params["name"]
        stem = name.removesuffix(".png").removesuffix(".contours")
        if name not in (f"{stem}.png", f"{stem}.contours.png"):
            raise InputError(f"No picture {name!r}.")
        return _bytes(self.source.patch_picture(stem, name.endswith(".contours.png")), "image/png", "private, max-age=3600")

    def slide(self, request: Request) -> Response:
        """Answer with the facts of a slide of the queue."""
        return _json(self.source.slide_info(self._slide_id(request)))

    def tile(self, request: Request) -> Response:
        """Answer with a tile of a slide."""
        level, column, row = (request.path_params[k] for k in ("level", "column", "row"))
        if level > 20 or max(column, row) > 1_000_000:
            raise InputError("No such tile.")
        return _bytes(
            self.source.slide_tile(self._slide_id(request), level, column, row), "image/jpeg", "private, max-age=3600"
        )

    def nuclei(self, request: Request) -> Response:
        """Answer with the polygons of a view: n, V, n in view, n + 1 offsets as uint32, V (x, y) as float32; little-endian."""
        try:
            x, y, w, h = (int(float(request.query_params[k])) for k in ("x", "y", "w", "h"))
        except (KeyError, ValueError, OverflowError) as err:
            raise InputError("Expected a view as x, y, w, h in level-0 px.") from err
        if not (0 < w <= MAX_VIEW_PX and 0 < h <= MAX_VIEW_PX):
            raise InputError(f"Expected a view of at most {MAX_VIEW_PX} px, got {w} x {h}: zoom in.")
        xy, offsets = self.source.slide_nuclei(self._slide_id(request), Box(x, y, w, h))
        in_view, offsets = max(0, len(offsets) - 1), offsets[: MAX_NUCLEI + 1]
        xy = xy[: int(offsets[-1]) if len(offsets) else 0]
        head = struct.pack("<III", max(0, len(offsets) - 1), len(xy), in_view)
        return _bytes(
            head + offsets.astype("<u4").tobytes() + xy.astype("<f4").tobytes(), "application/octet-stream", "no-store"
        )

    def _slide_id(self, request: Request) -> str:
        number = request.path_params["number"]
        items = self.session.items("slides")
        if number >= len(items):
            raise InputError(f"No slide {number} in the queue of {len(items)}.")
        return items[number]


async def _small_json(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise InputError("Expected a JSON body.")
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise InputError(f"Expected at most {MAX_BODY_BYTES} bytes.")
    try:
        body = json.loads(data)
    except ValueError as err:
        raise InputError(f"Expected a JSON body: {err}") from err
    if not isinstance(body, dict):
        raise InputError("Expected a JSON object.")
    return body


def _bytes(data: bytes, kind: str, cache: str) -> Response:
    from starlette.responses import Response

    return Response(data, headers={"content-type": kind, "cache-control": cache})


def _json(value: dict[str, Any], status: int = 200) -> Response:
    from starlette.responses import Response

    return Response(json.dumps(value), status, {"content-type": "application/json", "cache-control": "no-store"})


async def _our_error(request: Request, err: Exception) -> Response:
    """Answer with the message of a wsiseg error; anything else is a bug and stays a 500 with its traceback on the console."""
    return _json({"error": " ".join(str(err).split())}, 400 if isinstance(err, InputError) else 500)


def create_app(
    session: ReviewSession, source: ReviewSource, *, token: str, hosts: frozenset[str], title: str = ""
) -> Starlette:
    """Return the web application.

    Parameters
    ----------
    token
        What the address must carry once.
    hosts
        Values of the Host header that are answered, such as ``127.0.0.1:8123``.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Route

    pages = _Pages(session, source, title)
    port = next(iter(hosts)).rpartition(":")[2] if hosts else "0"
    routes = [Route(path, pages.page) for path in pages.static]
    routes += [
        Route("/api/state", pages.state),
        Route("/api/mark", pages.mark, methods=["POST"]),
        Route("/patch/{name}", pages.patch),
        Route("/slide/{number:int}", pages.slide),
        Route("/slide/{number:int}/tile/{level:int}/{column:int}/{row:int}.jpg", pages.tile),
        Route("/slide/{number:int}/nuclei", pages.nuclei),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Guard, token=token, hosts=hosts, cookie=f"wsiseg_review_{port}")],
        exception_handlers={WsisegError: _our_error, OSError: _our_error},
    )
