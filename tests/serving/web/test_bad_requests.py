"""Bad requests: each is refused with the right status and names the fault; none breaks the server."""

import contextlib
import gzip
import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import pytest

from simcse_jax.serving.web.guard import Settings
from tests.serving.web.made_model import MadeIndex, MadeModel
from tests.serving.web.servers import answered, served

LIMITS = Settings(
    name="made",
    max_texts=20,
    max_characters=500,
    max_body=20_000,
    max_top_k=50,
    max_hits=100,
    time_limit_s=2,
    keep_alive_s=2,
)
LONG = "x" * 501
JSON = {"Content-Type": "application/json"}
# A valid body for each route that takes one.
VALID: dict[str, dict[str, Any]] = {
    "/encode": {"texts": "a"},
    "/similarity": {"queries": "a", "keys": "a"},
    "/search": {"query": "a"},
    "/v1/embeddings": {"input": "a"},
}
TEXT_FIELDS = [("/encode", "texts"), ("/similarity", "queries"), ("/similarity", "keys"), ("/v1/embeddings", "input")]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with served(MadeModel(MadeIndex()), LIMITS) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


@pytest.fixture(autouse=True)
def still_works(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check after each test that the server answers, and logged no failure."""
    yield
    assert client.get("/health").raise_for_status().json()["waiting"] == 0
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def refused(client: httpx.Client, path: str, body: bytes, status: int, name: str) -> None:
    """Check the status, which is 400 in place of 422 in OpenAI's shape, and that the message holds the name."""
    openai = path.startswith("/v1/")
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == (400 if openai and status == 422 else status), (body[:80], answer.text)
    message = answer.json()["error"]["message"] if openai else answer.json()["detail"]
    assert name in message, body[:80]
    assert 0 < len(message) < 600


def test_valid_bodies_are_taken(client: httpx.Client) -> None:
    for path, body in VALID.items():
        assert client.post(path, json=body).status_code == 200


# What is not JSON, or holds no text that can be encoded.
UNREADABLE = {
    "half": b"{",
    "a number with 5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "NaN": b'{"texts": NaN}',
    "-Infinity": b'{"a": [-Infinity]}',
    "a byte order mark": b'\xef\xbb\xbf{"texts": "a"}',
    "Latin-1": b'{"texts": "Gr\xfc\xdfe"}',
    "UTF-16": '{"texts": "ü"}'.encode("utf-16"),
    "a surrogate in UTF-8": b'{"texts": "\xed\xa0\x80"}',
    "compressed": gzip.compress(b'{"texts": "a"}', mtime=0),
    "lists in lists": b'{"texts": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "a key twice": b'{"texts": "a", "input": "a", "texts": "b"}',
    "a key twice, once escaped": b'{"input": "a", "\\u0069nput": "b"}',
    "a key twice, further in": b'{"a": [{"b": 1, "b": 1}]}',
    "a thousand keys": json.dumps({f"f{n}": n for n in range(1000)}).encode(),
}


@pytest.mark.parametrize("path", VALID)
def test_unreadable_bodies(client: httpx.Client, path: str) -> None:
    for body in UNREADABLE.values():
        refused(client, path, body, 400, "")
    for body in (b"", b'["a"]', b'"texts"', b"7", b"null"):  # JSON, but no object
        refused(client, path, body, 422, "")


HALVES = {
    b'{"texts": "a\\udfff"}': "texts holds half of a surrogate pair, '\\udfff' at place 1,",
    b'{"a": ["b", {"c": "\\ud83d\\ude00\\ud800"}]}': "a[1].c holds half of a surrogate pair, '\\ud800' at place 1,",
    b'{"a": [{"\\ud800": 1}]}': "a[0] has a key that holds half",
    b'["\\ud800"]': "[0] holds half",
}


@pytest.mark.parametrize("path", VALID)
def test_half_a_character_is_refused_with_its_place(client: httpx.Client, path: str) -> None:
    for body, name in HALVES.items():
        refused(client, path, body, 422, name)


def test_a_text_without_tokens_is_the_clients_fault(client: httpx.Client) -> None:
    for path, body in VALID.items():
        refused(client, path, json.dumps(dict.fromkeys(body, "\u200b")).encode(), 422, "no tokens")


@pytest.mark.parametrize("path", VALID)
def test_valid_json_that_is_not_taken_is_not_called_invalid(client: httpx.Client, path: str) -> None:
    for name in ("a number with 5,000 digits", "lists in lists", "a key twice", "a thousand keys"):
        assert "not JSON" not in client.post(path, content=UNREADABLE[name], headers=JSON).text


NO_TEXTS: list[Any] = [None, True, 7, 1.5, {"a": 1}, [], ["a", None], ["a", 1], ["a", ["b"]], ["a", {"b": "c"}]]


@pytest.mark.parametrize(("path", "field"), TEXT_FIELDS)
def test_what_is_no_text_and_too_much_text(client: httpx.Client, path: str, field: str) -> None:
    for value in NO_TEXTS:
        name = f"{field}[1]" if value and isinstance(value, list) else field
        refused(client, path, json.dumps({**VALID[path], field: value}).encode(), 422, name)
    refused(client, path, json.dumps({**VALID[path], field: ["a"] * 21}).encode(), 422, "20")
    refused(client, path, json.dumps({**VALID[path], field: ["a", LONG]}).encode(), 422, "500")
    refused(client, path, json.dumps({**VALID[path], field: ["a" * 200_000]}).encode(), 413, "20,000")
    refused(client, path, json.dumps({**VALID[path], field: ["a" * 20_000]}).encode(), 413, "20,000")


# Values that a field does not take, as JSON.
WRONG_VALUES = {
    ("/search", "query"): ["true", "5", '["a"]', "{}", json.dumps(LONG)],
    ("/search", "queries"): ['"a"', "[]", '["a", null]'],
    ("/search", "top_k"): ["0", "-3", "51", str(2**31), "1e300", "1e400", "1.5", '"5"', "true", "[5]"],
    ("/search", "threshold"): ["1.01", "-2", '"0.5"', "true", "[0.5]", "1e400", "-1e400"],
    ("/v1/embeddings", "input"): ["[1, 2]", "[[1], [2]]", "[true]", '[["a"]]', "[[]]"],
    ("/encode", "truncate"): ['"false"', "0"],
    ("/v1/embeddings", "encoding_format"): ['"hex"', '"BASE64"', '""', "64", '["float"]'],
    ("/v1/embeddings", "dimensions"): ["5", "33", "0", "-32", "1e400", "31.5", '"32"', "true", "[32]"],
    ("/v1/embeddings", "model"): ["3", '["m"]'],
}


@pytest.mark.parametrize(("path", "field"), WRONG_VALUES)
def test_wrong_values_name_their_field(client: httpx.Client, path: str, field: str) -> None:
    others = {key: value for key, value in VALID[path].items() if (key, field) != ("query", "queries")}
    for value in WRONG_VALUES[path, field]:
        fields = {key: json.dumps(other) for key, other in others.items()} | {field: value}
        body = "{" + ", ".join(f'"{key}": {text}' for key, text in fields.items()) + "}"
        # Too long a text is not named by its field but by its place.
        refused(client, path, body.encode(), 422, "500" if LONG in value else field)


# Bodies that are wrong as a whole: the route, the body and what the message names.
WRONG_BODIES: list[tuple[str, dict[str, Any], str]] = [
    ("/encode", {}, "texts"),
    ("/encode", {"text": "a"}, "text:"),
    ("/encode", {"texts": "a", "x" * 400: 1}, "xxx"),
    ("/encode", {f"f{n}": n for n in range(90)}, "f0"),
    ("/similarity", {"queries": "a"}, "keys"),
    ("/similarity", {"queries": ["a"] * 11, "keys": ["a"] * 10}, "20"),
    ("/search", {"top_k": 5}, "queries"),
    ("/search", {"query": "a", "queries": ["a"]}, "queries"),
    ("/search", {"query": "a", "k": 3}, "k"),
    ("/search", {"queries": ["a"] * 5, "top_k": 21}, "100"),
    ("/v1/embeddings", {"model": "m"}, "input"),
]


def test_only_numbers_are_token_ids(client: httpx.Client) -> None:
    for value, are_tokens in (([1, 2], True), ([[1], [2]], True), ([True], False), ([["a"]], False), ([[]], False)):
        message = client.post("/v1/embeddings", json={"input": value}).json()["error"]["message"]
        assert ("token ids" in message) == are_tokens


def test_wrong_bodies(client: httpx.Client) -> None:
    for path, body, name in WRONG_BODIES:
        refused(client, path, json.dumps(body).encode(), 422, name)


# What is sent byte by byte --------------------------------------------------------------------------------------------

_HOST = b"Host: localhost\r\n"
_CLOSE = b"Connection: close\r\n"
_TYPE = b"Content-Type: application/json\r\n"
_POST = b"POST /encode HTTP/1.1\r\n" + _HOST + _TYPE
_FORM = b"POST /encode HTTP/1.1\r\n" + _HOST
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
_GET = b"GET /health HTTP/1.1\r\n" + _HOST
_BODY = b'{"texts": "a"}'


class Raw(NamedTuple):
    """Bytes on a connection, the statuses that come back before the server closes it, and a name in the answer."""

    sent: bytes
    statuses: list[int]
    name: str = ""
    hang_up: bool = False  # nothing more is sent


def line(text: str, status: int) -> Raw:
    return Raw(text.encode() + b" HTTP/1.1\r\n" + _HOST + _CLOSE + b"\r\n", [status])


def header(value: bytes, status: int, name: str) -> Raw:
    host = b"" if value.startswith(b"Host") else _HOST
    head = b"POST /encode HTTP/1.1\r\n" + host + _CLOSE + value + b"Content-Length: %d\r\n\r\n" % len(_BODY)
    return Raw(head + _BODY, [status], name)


RAW = {
    # Methods and paths; HTTP clients would tidy these up.
    **{text: line(text, 405) for text in ("GET /encode", "HEAD /encode", "OPTIONS /encode", "get /health")},
    **{
        text[:40]: line(text, 404)
        for text in (
            "GET /health/", "GET //health", "GET /health%00", "GET /%ff%fe", "GET /%2e%2e/%2e%2e/etc/passwd",
            "GET /page.html", "GET http://localhost/health", "OPTIONS *", "CONNECT localhost:80", f"GET /{'x' * 5000}",
        )
    },
    # Headers of a request that is right otherwise.
    "no content type": header(b"", 415, "Content-Type"),
    "plain text": header(b"Content-Type: text/plain; application/json\r\n", 415, "Content-Type"),
    "a form with files": header(b"Content-Type: multipart/form-data; boundary=x\r\n", 415, "Content-Type"),
    "nearly JSON": header(b"Content-Type: application/jsonp\r\n", 415, "Content-Type"),
    "two content types": header(_TYPE + b"Content-Type: text/plain\r\n", 415, "Content-Type"),
    "compressed": header(_TYPE + b"Content-Encoding: gzip\r\n", 415, "Content-Encoding"),
    "a foreign name": header(b"Host: evil.example:80\r\n", 421, "--allowed_hosts=evil.example"),
    "ours as its first part": header(b"Host: localhost.evil.example\r\n", 421, "localhost.evil.example"),
    "ours as its last part": header(b"Host: evil-localhost\r\n", 421, "evil-localhost"),
    "ours as its user": header(b"Host: localhost@evil.example\r\n", 421, "evil.example"),
    "another address": header(b"Host: 10.0.0.1\r\n", 421, "10.0.0.1"),
    "half a bracket": header(b"Host: [\r\n", 421, "["),
    "a name of odd bytes": header(b"Host: \xff\xfe\r\n", 421, ""),
    # What is hardly HTTP.
    "a TLS hello": Raw(bytes.fromhex("1603010200010001fc0303") + bytes(100), [400]),
    "HTTP/2's first words": Raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [404, 400]),
    "a path without end": Raw(b"GET /" + b"x" * 100_000, [400]),
    "no name": Raw(b"GET /health HTTP/1.1\r\n\r\n", [400]),
    "a header without end": Raw(_GET + b"X-A: " + b"x" * 100_000, [400]),
    # Bodies and their lengths.
    "two lengths": Raw(_POST + b"Content-Length: 14\r\nContent-Length: 15\r\n\r\n" + _BODY, [400]),
    "a terabyte, announced": Raw(_POST + b"Content-Length: 1000000000000\r\n\r\n", [413], "20,000"),
    "two kinds of length": Raw(
        _POST + b"Content-Length: 14\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _GET + b"\r\n", [400]
    ),
    "too short a length": Raw(_POST + b"Content-Length: 13\r\n\r\n" + _BODY, [400]),
    "no length": Raw(_POST + _CLOSE + b"\r\n", [422]),
    "half a body, and silence": Raw(_POST + b"Content-Length: 14\r\n\r\n{", [408]),
    "half a body, and gone": Raw(_POST + b"Content-Length: 14\r\n\r\n{", [], hang_up=True),
    "half a head, and silence": Raw(b"POST /encode HTTP/1.1\r\nHost: loc", []),
    "silence": Raw(b"", []),
    "gone at once": Raw(b"", [], hang_up=True),
    "a chunk's length without end": Raw(_CHUNKED + b"0" * 100_000, [400]),
    "chunks without an end": Raw(_CHUNKED + b"e\r\n" + _BODY + b"\r\n", [408]),
    "half a chunk, and gone": Raw(_CHUNKED + b"e\r\n{", [], hang_up=True),
    "chunks that hold no JSON": Raw(_CHUNKED + b"1\r\n{\r\n0\r\n\r\n", [400]),
    "too many chunks": Raw(_CHUNKED + b"400\r\n%s\r\n" % (b" " * 1024) * 30 + b"0\r\n\r\n", [413], "20,000"),
    # Several requests at once.
    "noise after a request": Raw(_GET + b"\r\n" + b"nonsense\r\n\r\n", [200, 400]),
    "half a request after one": Raw(_GET + b"\r\n" + b"GET /hea", [200]),
    "a wrong one between two": Raw(
        _GET + b"\r\nGET /no HTTP/1.1\r\n" + _HOST + b"\r\n" + _GET + _CLOSE + b"\r\n", [200, 404, 200]
    ),
    "noise after a refusal": Raw(_FORM + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", [400]),
    "no end to what is refused": Raw(_FORM + b"Content-Length: 9\r\n\r\n{", [415]),
    "a WebSocket": Raw(
        b"GET /encode HTTP/1.1\r\n" + _HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", [405]
    ),
}  # fmt: skip


def connected(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=60)


def test_bytes_are_refused_or_cut_off(client: httpx.Client) -> None:
    def sent(case: Raw) -> bytes:
        answer = b""
        with connected(client) as raw, contextlib.suppress(ConnectionError):  # closed while there was more to send
            raw.sendall(case.sent)
            if case.hang_up:
                raw.shutdown(socket.SHUT_WR)
            while part := raw.recv(1 << 16):
                answer += part
        return answer

    with ThreadPoolExecutor(16) as threads:  # many of them wait for the time limit
        answers = list(threads.map(sent, RAW.values()))
    for (name, case), answer in zip(RAW.items(), answers, strict=True):
        assert [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)] == case.statuses, (name, answer)
        assert case.name in answer.decode(), name


def test_noise_that_comes_after_a_refusal(client: httpx.Client) -> None:
    with connected(client) as raw:
        raw.sendall(_FORM + b"Transfer-Encoding: chunked\r\n\r\n")
        assert answered(raw) == 415
        raw.sendall(b"nonsense\r\n")
        assert raw.recv(1 << 16) == b""


def test_large_bodies_are_refused_soon() -> None:
    large = Settings().max_body - 1000
    keys = b",".join(b'"%d":0' % n for n in range(large // 11))
    ones, empty = (b"[" + b",".join([item] * (large // (len(item) + 1))) + b"]" for item in (b"1", b'""'))
    bodies = [
        ("/encode", b"{" + keys + b"}"),
        ("/encode", b'{"texts":%s}' % empty),
        ("/search", b'{"queries":%s}' % ones),
        ("/v1/embeddings", b'{"input":%s}' % ones),
    ]
    patient = Settings(time_limit_s=300)
    with served(MadeModel(MadeIndex()), patient) as url, httpx.Client(base_url=url, timeout=300) as client:
        for path, body in bodies:
            start = time.process_time()  # of the server too: it is a thread here
            answer = client.post(path, content=body, headers=JSON)
            assert answer.status_code in (400, 422), answer.text
            assert len(answer.text) < 600
            assert time.process_time() - start < 5, (path, body[:40])
