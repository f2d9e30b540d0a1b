"""How long a client may keep a connection: a server process of its own with a time limit of two seconds."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.serving.web.servers import answered, process

pytestmark = pytest.mark.slow
LIMIT_S = 2.0
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
# An answer of 5 MB, more than the system holds for a client that does not read.
LARGE = json.dumps({"queries": ["a"] * 512, "keys": ["b"] * 512}).encode()


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with process("tests.serving.web.serve_made", "0", str(LIMIT_S)) as (_, url):
        httpx.get(f"{url}/health").raise_for_status()
        host, port = url.removeprefix("http://").split(":")
        yield host, int(port)
        httpx.get(f"{url}/health").raise_for_status()


@contextlib.contextmanager
def connected(address: tuple[str, int], buffer: int = 0) -> Iterator[socket.socket]:
    with socket.socket() as client:
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(30)
        client.connect(address)
        yield client


def until_closed(client: socket.socket, drip: bytes = b"") -> float:
    """Seconds until the server closes the connection, of which nothing more is read; drip: sent all the while."""
    start = time.monotonic()
    client.settimeout(0.1)
    while time.monotonic() < start + 20:
        with contextlib.suppress(TimeoutError):
            try:
                if drip:
                    client.sendall(drip)
                assert client.recv(1000) == b""
                return time.monotonic() - start
            except ConnectionError:
                return time.monotonic() - start
    raise AssertionError("the server keeps it")


@pytest.mark.parametrize(
    ("sent", "drip"),
    [
        (b"", b""),
        (b"GET /hea", b""),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"a"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n"),
    ],
    ids=["silence", "half-a-line", "a-header-that-never-ends", "headers-that-never-end"],
)
def test_what_is_no_whole_request_is_cut_off(address: tuple[str, int], sent: bytes, drip: bytes) -> None:
    with connected(address) as client:
        client.sendall(sent)
        assert 0.8 * LIMIT_S < until_closed(client, drip) < 10


def test_the_next_request_has_to_come_in_time_too(address: tuple[str, int]) -> None:
    with connected(address) as client:
        client.sendall(HEALTH)
        assert answered(client) == 200
        time.sleep(0.5 * LIMIT_S)
        client.sendall(HEALTH)  # the time begins anew after each answer
        assert answered(client) == 200
        client.sendall(HEALTH[:-2])
        assert 0.8 * LIMIT_S < until_closed(client, b"X: y\r\n") < 10


def test_a_body_behind_a_refusal_is_cut_off(address: tuple[str, int]) -> None:
    with connected(address) as client:
        client.sendall(b"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        assert answered(client) == 415
        assert until_closed(client, b" ") < 10


def _asking_for_much(client: socket.socket) -> None:
    client.sendall(
        b"POST /similarity HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(LARGE), LARGE)
    )


def _read(client: socket.socket, pause_s: float) -> tuple[int, int]:
    """Bytes of the answer's body that came and that were announced; pause_s: after each 0.6 MB."""
    came, pauses = bytearray(), 0
    with contextlib.suppress(ConnectionError):
        while part := client.recv(1 << 16):
            came += part
            head, _, body = came.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            if len(body) == length:
                return length, length
            if len(came) > (pauses + 1) * 600_000:
                pauses += 1
                time.sleep(pause_s)
    return len(body), length


@pytest.mark.parametrize("behind", [b"", HEALTH])
def test_an_answer_that_nobody_reads_is_cut_off(address: tuple[str, int], behind: bytes) -> None:
    with connected(address, 1 << 14) as client:
        _asking_for_much(client)
        with contextlib.suppress(ConnectionError):
            client.sendall(behind)
        time.sleep(3 * LIMIT_S)
        came, announced = _read(client, 0)
        assert announced > 4_000_000
        assert came < announced


def test_a_slow_reader_gets_all(address: tuple[str, int]) -> None:
    with connected(address, 1 << 14) as client:
        _asking_for_much(client)
        start = time.monotonic()
        came, announced = _read(client, 0.3 * LIMIT_S)
        assert came == announced
        assert time.monotonic() - start > 2 * LIMIT_S
