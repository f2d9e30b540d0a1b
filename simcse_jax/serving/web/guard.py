"""Before any route: who asks, how much, and whether they are still there."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import Response

from simcse_jax.serving.web.failures import failure
from simcse_jax.serving.web.settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]

# What anybody may read: the pages hold nothing but words, and a load balancer has no key for /health.
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


class _Gone(Exception):
    """The client hung up before its request was whole."""


class Guard:
    """ASGI middleware: refuses what may not pass, reads the whole body within limits, and stops when the client goes.

    Every answer, its own and the app's, carries HEADERS, unless the app has set one of them itself.
    """

    def __init__(self, app: Any, settings: Settings):
        self._app, self._settings = app, settings
        self._key = settings.api_key.encode() if settings.api_key else None
        self._at_once = 0  # requests that are being served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        self._at_once += 1
        try:
            taken = self._refused(scope) or await self._body(scope, receive)
            if isinstance(taken, Response):
                await taken(scope, receive, answer.send)
            else:
                await self._while_there(scope, receive, answer, taken)
        except _Gone:
            return
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if not answer.started:
                words = "The server failed at this; its log says why."
                await failure(scope["path"], 500, words)(scope, receive, answer.send)
        finally:
            self._at_once -= 1

    def _refused(self, scope: Scope) -> Response | None:
        """Why this may not pass, from its headers and the number of others; None when it may."""
        path = scope["path"]
        if self._at_once > self._settings.max_requests:
            return failure(path, 503, "The server has too many requests at once already; come again in a second.")
        headers = {name.lower(): value for name, value in scope["headers"]}
        known = self._settings.known_hosts
        host = _host_name(headers.get(b"host", b""))
        if known and host and host not in known:
            return failure(path, 421, f"This server is not called {host:.80}; call it 127.0.0.1 or localhost.")
        given = headers.get(b"authorization", b"")
        if path not in OPEN_PATHS and not self._may_enter(given):
            asked = "This server asks for its API key: send the header `Authorization: Bearer KEY`."
            words = "This is not the API key of this server." if given else asked
            return failure(path, 401, words, {"WWW-Authenticate": "Bearer"})
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":
            # Also what keeps other sites' forms out: a browser asks before it sends JSON elsewhere.
            return failure(path, 415, "Send JSON, with the header `Content-Type: application/json`.")
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > 2 * self._settings.max_body:
            return self._too_large(path)
        return None

    def _may_enter(self, given: bytes) -> bool:
        """Whether the Authorization header carries the key, or none is asked for."""
        if self._key is None:
            return True
        # In constant time, so that nobody guesses by it; as bytes, for a str beyond ASCII could not be compared.
        return given[:7].lower() == b"bearer " and hmac.compare_digest(given[7:].strip(), self._key)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | Response:
        """The whole body, or why it is not taken."""
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
                    # What is a little too large is read to its end, for only then do all clients read the answer.
                    if size <= limit:
                        body += part
        except TimeoutError:
            words = f"The request was not whole after {self._settings.time_limit_s:g} s."
            return failure(scope["path"], 408, words, {"Connection": "close"})
        return self._too_large(scope["path"]) if size > limit else bytes(body)

    def _too_large(self, path: str) -> Response:
        words = f"The request has more than {self._settings.max_body:,} bytes; send the texts in several requests."
        return failure(path, 413, words, {"Connection": "close"})

    async def _while_there(self, scope: Scope, receive: Receive, answer: _Answer, body: bytes) -> None:
        """Let the app answer, and cancel it when the client hangs up before the answer is whole."""
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if unread:
                return unread.pop()
            return await asyncio.get_running_loop().create_future()  # never: an app whose client is gone is cancelled

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        app = asyncio.ensure_future(self._app(scope, replay, answer.send))
        watch = asyncio.ensure_future(gone())
        try:
            await asyncio.wait({app, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not app.done() and not answer.whole:
                app.cancel()
            await asyncio.wait({app})
            if not app.cancelled():
                app.result()
        finally:
            for task in (app, watch):
                task.cancel()
            await asyncio.gather(app, watch, return_exceptions=True)


class _Answer:
    """Sends an answer with HEADERS, and knows how far it has come."""

    def __init__(self, send: Send):
        self._send = send
        self.started = self.whole = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            own = {name.lower() for name, _ in message["headers"]}
            more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message["headers"], *((n, v) for n, v in more if n not in own)]}
        elif message["type"] == "http.response.body":
            self.whole = not message.get("more_body", False)
        await self._send(message)


def _host_name(header: bytes) -> str:
    """The name in a Host header, without port and brackets; the header itself where it cannot be read."""
    text = header.decode("latin-1")
    try:
        return urlsplit(f"//{text}").hostname or ""
    except ValueError:
        return text
