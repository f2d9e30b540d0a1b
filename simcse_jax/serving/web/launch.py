"""`serve`: a model on a port, until it is told to stop."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import numpy as np

from simcse_jax.serving.web.settings import LOOPBACK, Settings
from simcse_jax.system.errors import UserError

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from simcse_jax.serving.web.desk import Model

BACKLOG = 2048  # connections that the system holds for us when many come at once


def serve(model: Model, settings: Settings) -> None:
    """Answer requests until SIGTERM or Ctrl-C, then finish what runs and return by that signal.

    Prints where it listens once it does. UserError where FastAPI and uvicorn are missing, or the port cannot be had.
    """
    require_web()
    import uvicorn

    from simcse_jax.serving.web.app import make_app

    with _listening(settings) as listening:
        app = make_app(model, settings)
        print("Compiling for texts of the usual lengths", flush=True)
        warm_up(model)
        print(_greeting(model, settings, listening.getsockname()[1]), flush=True)
        uvicorn.Server(configured(app, settings)).run(sockets=[listening])


def configured(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn is to run the app."""
    import uvicorn

    from simcse_jax.serving.web.connections import limited

    return uvicorn.Config(
        app,
        http=limited(settings.time_limit_s),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks where a client is
        lifespan="on",
        ws="none",
        backlog=BACKLOG,
        # The last resort, which counts idle connections too: its 503 is bare, so the guard refuses far before.
        limit_concurrency=2 * settings.max_requests,
        timeout_graceful_shutdown=3 * int(settings.time_limit_s) + 5,  # all that a request may take
    )


def require_web() -> None:
    """UserError where FastAPI and uvicorn are missing."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"Serving needs FastAPI and uvicorn ({error}): pip install fastapi uvicorn") from error


def require_port(settings: Settings) -> None:
    """UserError where the port cannot be had."""
    _listening(settings).close()


def warm_up(model: Model) -> None:
    """Encode and search some texts, few and many, short and long, so that no client waits for the usual shapes."""
    vectors = np.zeros((0, model.width), np.float32)
    for words in (20, 100):  # what goes into rows of 64 and 128 tokens
        for count in (1, 100):
            vectors = model.encode([" ".join([str(n), *["word"] * words]) for n in range(count)])
    if model.index is not None:
        for count in (1, 4, 8, 16, 32):  # queries that come together; an exact index is compiled for each of these
            model.index.search(vectors[:count], 10)


def _listening(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UserError(
            f"Cannot listen on {settings.host}, port {settings.port}: {error.strerror or error}.\n"
            "Another port may be free, and 0 takes any that is."
        ) from error


def _greeting(model: Model, settings: Settings, port: int) -> str:
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    index = model.index
    searched = "no index, so no search" if index is None else f"{len(index):,} sentences to search"
    lines = [f"{settings.name} ({searched}) on http://{name}:{port}   routes: /docs   stop: Ctrl-C"]
    if settings.host not in LOOPBACK and settings.api_key is None:
        lines.append("Whoever reaches this machine can use it: there is no API key.")
    return "\n".join(lines)
