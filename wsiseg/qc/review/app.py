"""HTTP handlers of the review page. A request is refused without the token, from another machine or from another site."""

from __future__ import annotations

import dataclasses
import functools
import hmac
import html
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

import numpy as np
import numpy.typing as npt

from wsiseg.errors import InputError, WsisegError
from wsiseg.qc.review.session import PageFacts, ReviewSession
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
class ListedSlide:
    """What the page lists of a slide; ``kinds``: why it was flagged, in short words; ``estimate``: predicted bad share."""

    slide_id: str
    cohort: str
    kinds: tuple[str, ...] = ()
    flagged: bool = False
    estimate: float | None = None


@dataclass(frozen=True, slots=True)
class ReviewSource:
    """Functions that supply what the page shows. Each may be called from several threads at the same time.

    Attributes
    ----------
    patch_picture
        (patch id, contours) -> PNG bytes of the contour layer if ``contours``, else of the tissue.
    slide_info
        slide id -> dict for the page: width_px, height_px, mpp, reasons, ...; or ``error``: why the slide cannot be shown.
    slide_tile
        (slide id, level, column, row) -> JPEG of a 256 px tile; level k is the slide reduced by 2**k.
    slide_nuclei
        (slide id, level-0 box) -> rings as (xy float (V, 2), ring_offsets (N + 1,)).
    slides
        What the page lists of each slide.
    slide_quality
        slide id -> (dict for the page: ``cell_px``, ``w``, ``h``, ``patches``; PNG of the map of predicted quality), or None
        if the run has no predictions.
    """

    patch_picture: Callable[[str, bool], bytes]
    slide_info: Callable[[str], PageFacts]
    slide_tile: Callable[[str, int, int, int], bytes]
    slide_nuclei: Callable[[str, Box], tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]
    slides: Sequence[ListedSlide] = ()
    slide_quality: Callable[[str], tuple[PageFacts, bytes]] | None = None


class _AccessCheck:
    """Middleware that refuses requests with another host name, from another site, or without the token.

    The token is in the address that the command prints; the first response stores it in a cookie.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: frozenset[str], cookie: str) -> None:
        self.app, self.token, self.hosts, self.cookie = app, token, hosts, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to the application, or send a refusal."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        await (refusal or self.app)(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the refusal of a request, or the redirect that sets the cookie; None if the request is allowed."""
        from starlette.requests import cookie_parser
        from starlette.responses import PlainTextResponse, RedirectResponse

        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        if headers.get("host", "") not in self.hosts:
            # DNS rebinding: if another site's name resolves to this machine, the browser lets its scripts read our responses
            return PlainTextResponse("This server only answers requests to the address that `wsiseg qc review` printed.", 421)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("Method not allowed.", 405)
        origin = headers.get("origin")
        if origin is not None and origin not in {f"http://{h}" for h in self.hosts}:
            return PlainTextResponse("Requests from other sites are refused.", 403)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and given:
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                return PlainTextResponse("Wrong token: open the address that `wsiseg qc review` printed last.", 403)
            answer = RedirectResponse(_page_of(scope), 303)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
            return answer
        cookie = cookie_parser(headers.get("cookie", "")).get(self.cookie, "")
        if hmac.compare_digest(cookie.encode(), self.token.encode()):
            return None
        text = "No token: open the address that `wsiseg qc review` printed."
        if scope["path"] != "/" or "again" in parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True):
            return PlainTextResponse(text, 403)
        return _ask_again(scope, text)


def _page_of(scope: Scope) -> str:
    """Return the page's path with the ``slide`` parameter of the request and no others."""
    slide = parse_qs(scope["query_string"].decode("latin-1")).get("slide", [""])[0]
    return f"/?slide={quote(slide, safe='')}" if slide else "/"


def _ask_again(scope: Scope, text: str) -> Response:
    """Return a page that repeats the request once: a link from another site sends no SameSite=Strict cookie, our page does."""
    from starlette.responses import HTMLResponse

    page = _page_of(scope)
    address = f"{page}{'&' if '?' in page else '?'}again"
    return HTMLResponse(f'<meta http-equiv="refresh" content="0; url={html.escape(address)}"><p>{html.escape(text)}</p>', 403)


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Any) -> None:
        if message["type"] == "http.response.start":
            extra = [(k.lower().encode(), v.encode()) for k, v in SECURITY_HEADERS.items()]
            message = {**message, "headers": [*message["headers"], *extra]}
        await send(message)

    return wrapped


class _Pages:
    """The request handlers. Starlette runs those that are not async in threads, so a slow slide does not delay patches."""

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
        """Send one of the page's files."""
        data, kind = self.static[request.url.path]
        return _bytes(data, kind, "no-cache")

    async def state(self, request: Request) -> Response:
        """Send the next items of a queue (of one cohort or reason, or from a given slide on) and the progress."""
        asked = request.query_params
        queue = asked.get("queue", "patches")
        facts = {"reviewer": self.session.reviewer, "title": self.title}
        return _json({**self.session.state(queue, only=self._only(queue, asked), first=asked.get("item")), **facts})

    async def slides(self, request: Request) -> Response:
        """Send the list of all slides of the queue and the run, in their order."""
        words, queued = self.session.words("slides"), self.session.queued("slides")
        by_id = {s.slide_id: dataclasses.asdict(s) for s in self.source.slides}
        listed = [
            {**by_id.get(name, {"slide_id": name}), "place": place, "queued": place < queued, "word": words.get(name, "")}
            for place, name in enumerate(self.session.items("slides"))
        ]
        return _json({"slides": listed})

    async def place(self, request: Request) -> Response:
        """Send (GET) or store (POST) where the reviewer stopped."""
        if request.method != "POST":
            place = self.session.place
            gone = place.get("item") not in self.session.items("slides") or place.get("item") in self.session.words("slides")
            return _json({k: v for k, v in place.items() if not (gone and k in ("item", "view"))})
        body = await _small_json(request)
        view = body.get("view")
        if view is not None and not (isinstance(view, list) and len(view) == 3 and all(_is_number(v) for v in view)):
            raise InputError(f"Expected a view as [x, y, scale], got {view!r}.")
        place = {k: str(body.get(k) or "")[:500] for k in ("queue", "item", "cohort", "kind")}
        await _in_thread(self.session.remember, place | ({"view": view} if view else {}))
        return _json({})

    async def mark(self, request: Request) -> Response:
        """Record a mark, or withdraw the last one."""
        body = await _small_json(request)
        queue, item, word = (str(body.get(k, "")) for k in ("queue", "item", "mark"))
        only = self._only(queue, body)
        if word == "undo":
            return _json(await _in_thread(functools.partial(self.session.undo, queue, only=only)))  # type: ignore[arg-type]
        seconds = body.get("seconds", 0)
        if not _is_number(seconds) or seconds < 0:
            raise InputError(f"Expected seconds to be a number of at least 0, got {seconds!r}.")
        comment = str(body.get("comment", ""))
        function = functools.partial(self.session.mark, queue, item, word, comment, float(seconds), only=only)  # type: ignore[arg-type]
        return _json(await _in_thread(function))

    def _only(self, queue: str, asked: Mapping[str, Any]) -> frozenset[str] | None:
        """Return the slides of the requested cohort and reason; None if the request does not restrict them."""
        cohort, kind = asked.get("cohort"), str(asked.get("kind") or "")
        if queue != "slides" or (cohort is None and not kind):
            return None
        return frozenset(s.slide_id for s in self.source.slides if cohort in (None, s.cohort) and (not kind or kind in s.kinds))

    def patch(self, request: Request) -> Response:
        """Send a picture of a patch."""
        name = request.path_params["name"]
        stem = name.removesuffix(".png").removesuffix(".contours")
        if name not in (f"{stem}.png", f"{stem}.contours.png"):
            raise InputError(f"There is no picture {name!r}: expected PATCH.png or PATCH.contours.png.")
        return _bytes(self.source.patch_picture(stem, name.endswith(".contours.png")), "image/png", "private, max-age=3600")

    def slide(self, request: Request) -> Response:
        """Send size, resolution and flags of a slide in the queue."""
        return _json(self.source.slide_info(self._slide_id(request)))

    def tile(self, request: Request) -> Response:
        """Send a 256 px tile of a slide in the queue, as JPEG."""
        level, column, row = (request.path_params[k] for k in ("level", "column", "row"))
        if level > 20 or max(column, row) > 1_000_000:
            raise InputError(f"There is no tile {column}, {row} at level {level}.")
        return _bytes(
            self.source.slide_tile(self._slide_id(request), level, column, row), "image/jpeg", "private, max-age=3600"
        )

    def nuclei(self, request: Request) -> Response:
        """Send the polygons of a view, as little-endian binary data.

        In order, uint32: polygons sent (n), vertices (V), polygons in the view (more than n if the limit was reached), n + 1
        ring offsets; then V pairs (x, y) as float32, level-0 px.
        """
        try:
            x, y, w, h = (int(float(request.query_params[k])) for k in ("x", "y", "w", "h"))
        except (KeyError, ValueError, OverflowError) as err:
            raise InputError("Expected the numbers x, y, w and h of a view, in level-0 px.") from err
        if not (0 < w <= MAX_VIEW_PX and 0 < h <= MAX_VIEW_PX):
            raise InputError(f"Expected a view of at most {MAX_VIEW_PX} px per side, got {w} x {h} px: zoom in.")
        xy, offsets = self.source.slide_nuclei(self._slide_id(request), Box(x, y, w, h))
        in_view, offsets = max(0, len(offsets) - 1), offsets[: MAX_NUCLEI + 1]
        xy = xy[: int(offsets[-1]) if len(offsets) else 0]
        head = struct.pack("<III", max(0, len(offsets) - 1), len(xy), in_view)
        return _bytes(
            head + offsets.astype("<u4").tobytes() + xy.astype("<f4").tobytes(), "application/octet-stream", "no-store"
        )

    def quality(self, request: Request) -> Response:
        """Send the map of predicted quality of a slide: its size and the sampled patches as JSON, or its picture."""
        if self.source.slide_quality is None:
            raise InputError("This run has no predicted quality. Run `wsiseg qc predict` first.")
        facts, png = self.source.slide_quality(self._slide_id(request))
        return _bytes(png, "image/png", "no-store") if request.url.path.endswith(".png") else _json(facts)

    def _slide_id(self, request: Request) -> str:
        number = request.path_params["number"]
        items = self.session.items("slides")
        if number >= len(items):
            raise InputError(f"There is no slide {number} in the queue, which has {len(items)}, counted from 0.")
        return items[number]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


async def _in_thread(function: Callable[..., Any], *args: Any) -> Any:
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(function, *args)


async def _small_json(request: Request) -> PageFacts:
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise InputError("Expected a request with the content type application/json.")
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise InputError(f"Expected a request body of at most {MAX_BODY_BYTES} bytes.")
    try:
        body = json.loads(data)
    except ValueError as err:
        raise InputError(f"The request body is not JSON: {err}") from err
    if not isinstance(body, dict):
        raise InputError(f"Expected the request body to be a JSON object, got {type(body).__name__}.")
    return body


def _bytes(data: bytes, kind: str, cache: str) -> Response:
    from starlette.responses import Response

    return Response(data, headers={"content-type": kind, "cache-control": cache})


def _json(value: PageFacts, status: int = 200) -> Response:
    from starlette.responses import Response

    return Response(json.dumps(value), status, {"content-type": "application/json", "cache-control": "no-store"})


async def _error_answer(request: Request, err: Exception) -> Response:
    """Send the message of a WsisegError or OSError. Other exceptions are bugs: status 500, and a traceback on the console."""
    return _json({"error": " ".join(str(err).split())}, 400 if isinstance(err, InputError) else 500)


def create_app(
    session: ReviewSession, source: ReviewSource, *, token: str, hosts: frozenset[str], title: str = ""
) -> Starlette:
    """Return the web application of the review page.

    Parameters
    ----------
    token
        Secret that the first request must carry in its address.
    hosts
        Accepted values of the Host header, such as ``127.0.0.1:8123``.
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
        Route("/api/slides", pages.slides),
        Route("/api/place", pages.place, methods=["GET", "POST"]),
        Route("/patch/{name}", pages.patch),
        Route("/slide/{number:int}", pages.slide),
        Route("/slide/{number:int}/tile/{level:int}/{column:int}/{row:int}.jpg", pages.tile),
        Route("/slide/{number:int}/nuclei", pages.nuclei),
        Route("/slide/{number:int}/quality", pages.quality),
        Route("/slide/{number:int}/quality.png", pages.quality),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(_AccessCheck, token=token, hosts=hosts, cookie=f"wsiseg_review_{port}")],
        exception_handlers={WsisegError: _error_answer, OSError: _error_answer},
    )
