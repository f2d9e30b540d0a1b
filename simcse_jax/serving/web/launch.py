"""Serve a model on a port until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
import numpy as np
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from simcse_jax.serving.web.app import make_app
from simcse_jax.serving.web.batching import Model
from simcse_jax.serving.web.guard import LOOPBACK, Settings
from simcse_jax.system.errors import UserError

BACKLOG = 2048  # connections that the system holds while many arrive at once


def serve(model: Model, settings: Settings) -> None:
    """Answer requests until SIGTERM or Ctrl-C, then finish those that run and end by that signal.

    Prints the address once it listens. Raises UserError if the port is not free.
    """
    with _listening(settings) as listening:
        app = make_app(model, settings)
        print("Compiling for common lengths of texts", flush=True)
        warm_up(model)
        print(greeting(model, settings, listening.getsockname()[1]), flush=True)
        uvicorn.Server(uvicorn_config(app, settings)).run(sockets=[listening])


def uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Return the settings of uvicorn for the app."""
    return uvicorn.Config(
        app,
        http=type("Limited", (_Limited,), {"time_limit_s": settings.time_limit_s}),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # client addresses are not used
        lifespan="on",
        ws="none",
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_s,
        # A last resort that also counts idle connections; its 503 has no message, so the guard refuses much earlier.
        limit_concurrency=2 * settings.max_requests,
        timeout_graceful_shutdown=3 * int(settings.time_limit_s) + 5,  # the longest time of a request
    )


def require_port(settings: Settings) -> None:
    """Raise UserError if the port is not free."""
    _listening(settings).close()


def warm_up(model: Model) -> None:
    """Encode and search few and many, short and long texts, so that no client waits for common shapes to compile."""
    vectors = np.zeros((0, model.width), np.float32)
    for words in (20, 100):  # for rows of 64 and of 128 tokens
        for count in (1, 100):
            vectors = model.encode([" ".join([str(n), *["word"] * words]) for n in range(count)])
    if model.index is not None:
        for count in (1, 4, 8, 16, 32):  # an exact index compiles for each of these numbers of queries
            model.index.search(vectors[:count], 10)


def _listening(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UserError(
            f"Cannot listen on {settings.host}, port {settings.port}: {error.strerror or error}.\n"
            "Give another --port; 0 takes any free one."
        ) from error


def greeting(model: Model, settings: Settings, port: int) -> str:
    """Return what is printed once the server listens: the model, its limit, the address, and whether all may use it."""
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    index = model.index
    searched = "no index to search" if index is None else f"{len(index):,} sentences to search"
    lines = [
        f"{settings.name} ({searched}; texts are cut at {model.max_length} tokens) on "
        f"http://{name}:{port}{settings.path_prefix}   routes: {settings.path_prefix}/docs   stop: Ctrl-C"
    ]
    if settings.host not in LOOPBACK and settings.api_key is None:
        lines.append("Everyone who can reach this machine can use the server: SIMCSE_API_KEY sets no key.")
    return "\n".join(lines)


class _Limited(H11Protocol):
    """Give a client a limited time for its part (HTTP/1.1).

    The time runs until the head of a request is complete, and while an answer is unread. Uvicorn itself only limits the
    pause after an answer. The guard limits bodies.
    """

    time_limit_s: float
    _clock: asyncio.TimerHandle | None = None
    _unread = 0  # bytes of answers when the clock was set

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._set_clock()

    def handle_events(self) -> None:
        super().handle_events()
        self._set_clock()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._set_clock()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._set_clock()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._set_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_clock()

    def send_400_response(self, msg: str) -> None:
        """Answer 400 if an answer can be sent; otherwise invalid bytes after an answer end the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _set_clock(self) -> None:
        """Start the clock if the client has to act, or stop it; data that comes meanwhile gives no more time."""
        unread = self.transport.get_write_buffer_size()
        server_acts = self.cycle is not None and not self.cycle.response_complete
        is_idle = self.timeout_keep_alive_task is not None and not (unread or self.conn.trailing_data[0])
        is_idle = is_idle and self.conn.their_state is h11.IDLE
        if (server_acts or is_idle) and not self.flow.write_paused:
            self._stop_clock()
        elif self._clock is None:
            self._unread = unread
            self._clock = self.loop.call_later(self.time_limit_s, self._time_is_up)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _time_is_up(self) -> None:
        self._clock = None
        if self.transport.get_write_buffer_size() < self._unread:
            self._set_clock()  # the client is slow, but reads
        else:
            self.transport.abort()  # `close` would wait until everything is read
