"""Servers for tests: the app with a made model, on a port of this machine, in a thread of this process."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from simcse_jax.serving.web.app import make_app
from simcse_jax.serving.web.settings import Settings


@contextlib.contextmanager
def served(model: Any, settings: Settings | None = None) -> Iterator[str]:
    """The address of a running server for the model; it is stopped in the end, having finished what it has."""
    listening = socket.create_server(("127.0.0.1", 0))
    app = make_app(model, settings or Settings(name="made"))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        limit = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < limit, "the server did not start in time"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
