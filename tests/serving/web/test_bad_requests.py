"""Bad requests: each is refused in words, none is a 5xx, and none keeps the server from the next."""

import logging
import re
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from simcse_jax.serving.web.settings import Settings
from tests.serving.web.bad_requests import LIMITS, RIGHT, TEXT_FIELDS, Posted, Raw, kinds, posted, sent
from tests.serving.web.made_model import MadeIndex, MadeModel
from tests.serving.web.servers import answered, served

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with served(MadeModel(MadeIndex()), LIMITS) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


@pytest.fixture(autouse=True)
def still_there(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The server answers afterwards, and failed at nothing meanwhile."""
    yield
    assert client.get("/health").raise_for_status().json()["waiting"] == 0
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_there_are_many_kinds() -> None:
    assert kinds() >= 200
    for cases in (posted(), sent()):
        named = [(case.name, getattr(case, "path", "")) for case in cases]
        assert len(set(named)) == len(named)


def test_what_is_right_is_taken(client: httpx.Client) -> None:
    for path, body in RIGHT.items():
        assert client.post(path, json=body).status_code == 200


@pytest.mark.parametrize("case", posted(), ids=lambda case: f"{case.path} {case.name}")
def test_bodies_are_refused_in_words(client: httpx.Client, case: Posted) -> None:
    answer = client.post(case.path, content=case.body, headers=JSON)
    assert answer.status_code == case.status, answer.text
    found = answer.json()
    said = found["error"]["message"] if case.path.startswith("/v1/") else found["detail"]
    assert case.words in said
    assert len(said) < 600


@pytest.mark.parametrize("case", sent(), ids=lambda case: case.name)
def test_bytes_are_refused_in_words_or_cut_off(client: httpx.Client, case: Raw) -> None:
    said = b""
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=60) as raw:
        try:
            raw.sendall(case.sent)
            if case.hang_up:
                raw.shutdown(socket.SHUT_WR)
            while part := raw.recv(1 << 16):
                said += part
        except ConnectionError:
            pass  # closed while there was more to send
    assert [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", said)] == case.statuses, said
    assert case.words in said.decode()


LARGE = Settings().max_body - 1000


def test_large_bodies_are_refused_soon() -> None:
    keys = b",".join(b'"%d":0' % n for n in range(LARGE // 11))
    ones, empty = (b"[" + b",".join([item] * (LARGE // (len(item) + 1))) + b"]" for item in (b"1", b'""'))
    bodies = [
        ("/encode", b"{" + keys + b',"7":1}'),
        ("/encode", b"{" + keys + b"}"),
        ("/encode", b'{"texts":%s}' % empty),
    ]
    bodies += [(path, b'{"%s":%s}' % (field.encode(), ones)) for path, field in [*TEXT_FIELDS, ("/search", "queries")]]
    patient = Settings(time_limit_s=300)
    with served(MadeModel(MadeIndex()), patient) as url, httpx.Client(base_url=url, timeout=300) as client:
        for path, body in bodies:
            start = time.process_time()  # of the server too: it is a thread here
            answer = client.post(path, content=body, headers=JSON)
            assert answer.status_code in (400, 422), answer.text
            assert len(answer.text) < 600
            assert time.process_time() - start < 5, (path, body[:40])


def test_noise_that_comes_after_a_refusal(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=60) as raw:
        raw.sendall(b"POST /encode HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert answered(raw) == 415
        raw.sendall(b"nonsense\r\n")
        assert raw.recv(1 << 16) == b""
