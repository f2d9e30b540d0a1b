"""Servers for tests, on a port of this machine: in a thread of this process, or in a process of their own."""

import contextlib
import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from simcse_jax.serving.web.app import make_app
from simcse_jax.serving.web.guard import Settings
from simcse_jax.serving.web.launch import uvicorn_config

ROOT = Path(__file__).parents[3]


@contextlib.contextmanager
def served(model: Any, settings: Settings | None = None) -> Iterator[str]:
    """Yield the address of a running server for the model; stop it in the end, when it has finished its work."""
    listening = socket.create_server(("127.0.0.1", 0))
    settings = settings or Settings(name="made")
    config = uvicorn_config(make_app(model, settings), settings)
    config.timeout_graceful_shutdown = 5
    config.limit_concurrency = None  # so that small limits of ours are met first
    server = uvicorn.Server(config)
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


@contextlib.contextmanager
def process(*command: str, cwd: Path = ROOT, **variables: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Yield a Python process of `-m command` that serves, and the address that it prints; end it afterwards.

    variables: of its environment, beside those of this process.
    """
    words, environment = [sys.executable, "-m", *command], os.environ | {"PYTHONPATH": str(ROOT)} | variables
    with subprocess.Popen(
        words, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as started:
        try:
            assert started.stdout
            said = []
            for line in started.stdout:
                said.append(line)
                if found := re.search(r"http://\S+", line):
                    yield started, found.group()
                    return
            raise AssertionError("it never served:\n" + "".join(said))
        finally:
            started.kill()


def answered(connection: socket.socket) -> int:
    """Read the next answer on a connection to its end, and return its status."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer.status
