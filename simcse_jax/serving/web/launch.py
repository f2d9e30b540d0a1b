"""`serve`: a model on a port, until it is told to stop."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from simcse_jax.errors import UserError
from simcse_jax.serving.web.settings import LOOPBACK, Settings

if TYPE_CHECKING:
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
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing here asks where a client is
            lifespan="on",
            ws="none",
            backlog=BACKLOG,
            limit_concurrency=settings.max_connections,
            timeout_graceful_shutdown=int(settings.time_limit_s) + 5,
        )
        print(_greeting(model, settings, listening.getsockname()[1]), flush=True)
        uvicorn.Server(config).run(sockets=[listening])


def require_web() -> None:
    """UserError where FastAPI and uvicorn are missing."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"Serving needs FastAPI and uvicorn ({error}): pip install 'simcse-jax[web]'") from error


def warm_up(model: Model) -> None:
    """Encode some texts, few and many, short and long, so that no client waits for the shapes that come most."""
    for words in (20, 45, 100):  # what goes into rows of 32, 64 and 128 tokens
        for count in (1, 100):
            model.encode([" ".join([str(n), *["word"] * words]) for n in range(count)])


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
