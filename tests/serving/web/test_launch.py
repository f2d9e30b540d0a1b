"""Starting and stopping: the port, what is missing, and SIGTERM while a request runs."""

import builtins
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from simcse_jax.errors import UserError
from simcse_jax.serving.web.launch import serve, warm_up
from simcse_jax.serving.web.settings import Settings
from tests.serving.web.made_model import CAPTIONS, MadeIndex, MadeModel

ROOT = Path(__file__).parents[3]


@pytest.fixture
def process() -> Iterator["subprocess.Popen[str]"]:
    """A server of which a call takes two seconds."""
    words = [sys.executable, "-m", "tests.serving.web.serve_made", "2"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        yield started
        started.kill()


def address(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    assert process.stdout.readline() == "Compiling for texts of the usual lengths\n"
    greeting = process.stdout.readline()
    assert greeting.startswith(f"made ({len(CAPTIONS)} sentences to search) on http://127.0.0.1:"), greeting
    found = re.search(r"http://\S+", greeting)
    assert found
    return found.group()


@pytest.mark.slow
def test_sigterm_finishes_what_runs(process: "subprocess.Popen[str]") -> None:
    url, found = address(process), []
    httpx.get(f"{url}/health").raise_for_status()
    asking = threading.Thread(
        target=lambda: found.append(httpx.post(f"{url}/encode", json={"texts": "slow"}, timeout=60))
    )
    asking.start()
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    asking.join()
    assert found[0].status_code == 200
    assert process.wait(20) == -signal.SIGTERM
    assert process.stdout
    assert process.stdout.read() == ""
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"Cannot listen on 127.0.0.1, port {port}: Address already in use"):
            serve(MadeModel(), Settings(port=port))
    with pytest.raises(UserError, match=r"Cannot listen on nowhere\.invalid"):
        serve(MadeModel(), Settings(host="nowhere.invalid"))


def test_a_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_uvicorn(name: str, *rest: Any, **more: Any) -> Any:
        if name == "uvicorn":
            raise ImportError("No module named 'uvicorn'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_uvicorn)
    with pytest.raises(UserError, match=r"No module named 'uvicorn'\): pip install 'simcse-jax\[web\]'"):
        serve(MadeModel(), Settings())


def test_the_model_is_warm_before_the_first_client() -> None:
    model = MadeModel(MadeIndex())
    warm_up(model)
    assert {len(call) for call in model.calls} == {1, 100}
    assert all(len(set(call)) == len(call) for call in model.calls)  # equal texts would be encoded once
