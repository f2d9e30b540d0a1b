"""Starting and stopping: the port, what is missing, and SIGTERM while a request runs."""

import signal
import socket
import threading
import time

import httpx
import pytest

from simcse_jax.serving.index.exact import QUERIES
from simcse_jax.serving.web.guard import Settings
from simcse_jax.serving.web.launch import greeting, serve, warm_up
from simcse_jax.system.errors import UserError
from tests.serving.web.made_model import MadeIndex, MadeModel
from tests.serving.web.servers import process


@pytest.mark.slow
def test_sigterm_finishes_what_runs() -> None:
    found: list[httpx.Response] = []
    with process("tests.serving.web.serve_made", "2") as (server, url):
        httpx.get(f"{url}/health").raise_for_status()
        asking = threading.Thread(
            target=lambda: found.append(httpx.post(f"{url}/encode", json={"texts": "slow"}, timeout=60))
        )
        asking.start()
        time.sleep(1)
        server.send_signal(signal.SIGTERM)
        asking.join()
        assert found[0].status_code == 200
        assert server.wait(20) == -signal.SIGTERM
        assert server.stdout
        assert server.stdout.read() == ""
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=str(port)):
            serve(MadeModel(), Settings(port=port))
    with pytest.raises(UserError, match=r"nowhere\.invalid"):
        serve(MadeModel(), Settings(host="nowhere.invalid"))


def test_the_greeting_says_where_and_the_length_limit() -> None:
    words = greeting(MadeModel(), Settings(path_prefix="/embed"), 8123)
    assert "http://127.0.0.1:8123/embed" in words
    assert "128 tokens" in words


def test_the_model_is_warm_before_the_first_client() -> None:
    index = MadeIndex()
    model = MadeModel(index)
    warm_up(model)
    assert {len(call) for call in model.calls} == {1, 100}
    assert all(len(set(call)) == len(call) for call in model.calls)  # equal texts would be encoded once
    assert {1, 32} <= set(index.searched)
    assert set(index.searched) <= set(QUERIES)  # other numbers would be padded to one of these
    warm_up(MadeModel())
