"""Guard the routes: the settings of a server, and the middleware that checks every request against them."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from fastapi import Response
from fastapi.responses import RedirectResponse
from starlette.routing import Match

from simcse_jax.serving.web.metrics import GONE, Metrics
from simcse_jax.serving.web.requests import failure
from simcse_jax.system.errors import UserError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]

# Paths that need no key: the pages hold no data, and load balancers have no key for /health.
OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/health"})
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # the pages have their own
    "Cache-Control": "no-store",
}

log = logging.getLogger(__name__)


LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Hold a server's address, key and limits; raises UserError for an invalid value."""

    name: str = "simcse"  # the name of the model in answers
    host: str = "127.0.0.1"  # this machine only; "0.0.0.0" for everyone who can reach it
    port: int = 8000  # 0 = any free port
    api_key: str | None = None  # needed by all requests but those for the pages and /health
    hosts: tuple[str, ...] = ()  # further host names of a server on a loopback address
    path_prefix: str = ""  # of all routes behind a proxy, for example "/embeddings"; the proxy may strip it or not
    origins: tuple[str, ...] = ()  # of web pages that may use the server ("https://app.example"); "*" for all
    max_texts: int = 2048  # texts in one request, all its lists together
    max_characters: int = 100_000  # in one text; the model cuts much earlier
    max_body: int = 8 * 2**20  # bytes in a request
    max_top_k: int = 1000  # hits of one query
    max_hits: int = 20_000  # hits of one request, all its queries together
    max_waiting: int = 4096  # texts of all clients that wait for the model; 503 above
    max_together: int = 256  # texts of several clients encoded in one call; more would make everyone wait
    max_requests: int = 1000  # at once; 503 above
    time_limit_s: float = 30.0  # for each of: a request to arrive, its texts to be encoded, and to be searched
    keep_alive_s: int = 75  # how long a connection may be idle; proxies keep theirs for 60 s

    def __post_init__(self) -> None:
        """Check all values."""
        if not 0 <= self.port <= 65535:
            raise UserError(f"port is {self.port}; it must be 0 to 65535, for example 8000; 0 takes any free port.")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("max_") and value < 1:
                raise UserError(f"{field.name} is {value}; it must be at least 1, for example {field.default}.")
        if not 0 < self.time_limit_s < float("inf"):
            raise UserError(f"time_limit_s is {self.time_limit_s}; it must be above 0 seconds, for example 30.")
        if not self.host:
            raise UserError("host is empty; give 127.0.0.1 for this machine only, or 0.0.0.0 for everyone.")
        if not re.fullmatch(r"(/[\w.~-]+)*", self.path_prefix, re.ASCII):
            raise UserError(f"path_prefix is {self.path_prefix!r}; it must be like /embeddings, with no / at its end.")
        for origin in self.origins:
            if not re.fullmatch(r"\*|https?://[^/\s]+", origin):
                raise UserError(f"The origin {origin!r} must be like https://app.example, without a path; * for all.")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            # A key that does not fit into a header would refuse everybody; an empty one would admit everybody.
            raise UserError("The API key is empty, or has characters that do not fit into a header. Use ASCII letters.")
        if self.api_key is not None and self.api_key != self.api_key.strip():
            raise UserError("The API key begins or ends with a space, which is lost in a header. Remove it.")

    @property
    def known_hosts(self) -> tuple[str, ...]:
        """Return the host names that requests may use; () for any.

        Names are checked on loopback addresses only: a web page could otherwise point its own name at 127.0.0.1, and
        read the answers in the browser of a visitor.
        """
        return (*LOOPBACK, *map(str.lower, self.hosts)) if self.host in LOOPBACK else ()


class _Gone(Exception):
    """Report that the client hung up before its request was complete."""


class Guard:
    """Refuse invalid requests, read bodies within limits, and cancel the work when a client hangs up (ASGI middleware).

    All answers get HEADERS, except those that the app has set itself, and the request's id: its X-Request-ID, or a new
    one. The app sees paths without the prefix, and HEAD as GET; uvicorn leaves out the body.
    """

    def __init__(self, app: Any, settings: Settings, metrics: Metrics, routes: Sequence[Any]):
        self._app, self._settings, self._metrics, self._routes = app, settings, metrics, routes
        self._key = settings.api_key.encode() if settings.api_key else None
        self._active = 0  # requests that are being served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        prefix, path = self._settings.path_prefix, scope["path"]
        if path.startswith(f"{prefix}/"):
            path = path.removeprefix(prefix)
        scope = {**scope, "path": path, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}
        headers = {name.lower(): value for name, value in scope["headers"]}
        answer = _Answer(send, _request_id(headers))
        start = asyncio.get_running_loop().time()
        self._active += 1
        try:
            taken = self._refused(scope, headers) or await self._body(scope, receive)
            if isinstance(taken, Response):
                await taken(scope, receive, answer.send)
            else:
                await self._serve_while_connected(scope, receive, answer, taken)
        except _Gone:
            return
        except Exception:
            log.exception("%s %s failed (request %s)", scope["method"], path, answer.request_id)
            if not answer.status:
                words = f"The server failed; its log says why, at request {answer.request_id}."
                await failure(path, 500, words)(scope, receive, answer.send)
        finally:
            self._active -= 1
            seconds = asyncio.get_running_loop().time() - start
            self._metrics.count(self._path_of_route(scope), answer.status if answer.complete else GONE, seconds)

    def _refused(self, scope: Scope, headers: dict[bytes, bytes]) -> Response | None:
        """Return a refusal by the headers or the number of active requests, or None."""
        path = scope["path"]
        if path and path == self._settings.path_prefix:
            return RedirectResponse(f"{path}/")  # the page's links are relative
        if self._active > self._settings.max_requests:
            return failure(path, 503, "The server has too many requests at once. Try again in a second.")
        if b"content-length" in headers and b"transfer-encoding" in headers:
            # A proxy that goes by the other one would see other requests in the same bytes.
            words = "A request has either Content-Length or Transfer-Encoding, not both."
            return failure(path, 400, words, {"Connection": "close"})
        known = self._settings.known_hosts
        host = _host_name(headers.get(b"host", b""))
        if known and host and host not in known:
            words = f"This server does not know the host {host:.80}. Use localhost, or start it with"
            return failure(path, 421, f"{words} --allowed_hosts={host:.80}.")
        given = headers.get(b"authorization", b"")
        if path not in OPEN_PATHS and not self._has_key(given):
            missing = "This server needs an API key. Send the header `Authorization: Bearer KEY`."
            words = "This is not the API key of this server." if given else missing
            return failure(path, 401, words, {"WWW-Authenticate": "Bearer"})
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":
            # This also keeps other sites' forms out: a browser asks the server before it sends JSON to another site.
            return failure(path, 415, "Send JSON, with the header `Content-Type: application/json`.")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            words = "This server takes no compressed requests. Leave out Content-Encoding."
            return failure(path, 415, words, {"Accept-Encoding": "identity"})
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > 2 * self._settings.max_body:
            return self._too_large(path)
        return None

    def _path_of_route(self, scope: Scope) -> str:
        """Return the path of the route that the request is for, even if it was refused before; "none" without one."""
        return next((route.path for route in self._routes if route.matches(scope)[0] is not Match.NONE), "none")

    def _has_key(self, given: bytes) -> bool:
        """Return whether the Authorization header has the key, or none is needed."""
        if self._key is None:
            return True
        # In constant time, so that it gives no hints; as bytes, since a str beyond ASCII cannot be compared.
        return given[:7].lower() == b"bearer " and hmac.compare_digest(given[7:].strip(), self._key)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | Response:
        """Return the whole body, or a refusal."""
        limit = self._settings.max_body
        body, size, more = bytearray(), 0, True
        try:
            async with asyncio.timeout(self._settings.time_limit_s):
                while more and size <= 2 * limit:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    # A body that is a little too large is read to its end: only then do all clients read the answer.
                    if size <= limit:
                        body += part
        except TimeoutError:
            words = f"The request was not complete after {self._settings.time_limit_s:g} s."
            return failure(scope["path"], 408, words, {"Connection": "close"})
        return self._too_large(scope["path"]) if size > limit else bytes(body)

    def _too_large(self, path: str) -> Response:
        words = f"The request has more than {self._settings.max_body:,} bytes. Send the texts in several requests."
        return failure(path, 413, words, {"Connection": "close"})

    async def _serve_while_connected(self, scope: Scope, receive: Receive, answer: _Answer, body: bytes) -> None:
        """Let the app answer, and cancel it if the client hangs up before the answer is complete."""
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if unread:
                return unread.pop()
            # Never done: the app is cancelled when its client is gone.
            return await asyncio.get_running_loop().create_future()

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        app = asyncio.ensure_future(self._app(scope, replay, answer.send))
        watch = asyncio.ensure_future(gone())
        try:
            await asyncio.wait({app, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not app.done() and not answer.complete:
                app.cancel()
            await asyncio.wait({app})
            if not app.cancelled():
                app.result()
        finally:
            for task in (app, watch):
                task.cancel()
            await asyncio.gather(app, watch, return_exceptions=True)


class _Answer:
    """Send an answer with HEADERS and the request's id, and record its status and whether it is complete."""

    def __init__(self, send: Send, request_id: str):
        self._send = send
        self.request_id = request_id
        self.status, self.complete = 0, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {name.lower() for name, _ in message["headers"]}
            more = [(n.lower().encode(), v.encode()) for n, v in {**HEADERS, "X-Request-ID": self.request_id}.items()]
            message = {**message, "headers": [*message["headers"], *((n, v) for n, v in more if n not in own)]}
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
        await self._send(message)


def _request_id(headers: dict[bytes, bytes]) -> str:
    """Return the client's id of its request, if it is harmless in headers and logs; else a new one."""
    given = headers.get(b"x-request-id", b"")
    return given.decode() if re.fullmatch(rb"[\w.:/+=-]{1,128}", given) else uuid.uuid4().hex


def _host_name(header: bytes) -> str:
    """Return the name in a Host header, without port and brackets; the header itself if it cannot be parsed."""
    text = header.decode("latin-1")
    try:
        return urlsplit(f"//{text}").hostname or ""
    except ValueError:
        return text
