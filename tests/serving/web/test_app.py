"""The server's routes, as clients meet them on loopback: what they answer, refuse, and say."""

import base64
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient

from simcse_jax.serving.web.app import make_app
from simcse_jax.serving.web.guard import Settings
from simcse_jax.system.errors import UserError
from tests.serving.web.made_model import CAPTIONS, WIDTH, MadeIndex, MadeModel, hashed
from tests.serving.web.servers import served
from tests.serving.web.test_bad_requests import VALID

SMALL = Settings(name="made", max_texts=20, max_characters=500, max_body=20_000, max_top_k=50, max_hits=100)
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def model() -> MadeModel:
    return MadeModel(MadeIndex())


@pytest.fixture(scope="module")
def client(model: MadeModel) -> Iterator[httpx.Client]:
    with served(model, SMALL) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


def wait_until(true: Any, limit_s: float = 10) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


# Routes ---------------------------------------------------------------------------------------------------------------


def test_encode(client: httpx.Client) -> None:
    answer = client.post("/encode", json={"texts": ["sun", "", "Grüße 🌞 \x00"]}).raise_for_status().json()
    assert (answer["model"], answer["width"]) == ("made", WIDTH)
    expected = np.stack([hashed(text) for text in ("sun", "", "Grüße 🌞 \x00")])
    np.testing.assert_array_equal(np.array(answer["vectors"], np.float32), expected)  # to the last bit
    assert len(client.post("/encode", json={"texts": "sun"}).json()["vectors"]) == 1


def test_similarity(client: httpx.Client) -> None:
    answer = client.post("/similarity", json={"queries": ["sun", "moon"], "keys": ["moon", "sun", "sea"]})
    matrix = np.array(answer.raise_for_status().json()["similarity"])
    assert matrix.shape == (2, 3)
    np.testing.assert_allclose([matrix[0, 1], matrix[1, 0]], 1, atol=1e-6)
    assert matrix.max() <= 1
    assert client.post("/similarity", json={"queries": "sun", "keys": "sun"}).json()["similarity"] == [
        [pytest.approx(1)]
    ]


def test_search(client: httpx.Client) -> None:
    query = "a man is playing guitar"
    hits = client.post("/search", json={"query": query, "top_k": 3}).raise_for_status().json()["hits"]
    assert [hit["text"] for hit in hits[:1]] == [CAPTIONS[0]]
    assert [sorted(hit) for hit in hits] == [["id", "score", "text"]] * 3
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)
    several = client.post("/search", json={"queries": [query, "rain"], "top_k": 3}).json()["hits"]
    assert several[0] == [hit | {"score": pytest.approx(hit["score"], abs=1e-6)} for hit in hits]
    assert len(several) == 2
    high = client.post("/search", json={"query": query, "threshold": 0.99}).json()["hits"]
    assert [hit["text"] for hit in high] == [CAPTIONS[0]]
    assert client.post("/search", json={"query": query, "threshold": None, "top_k": 3.0}).json()["hits"] == hits
    assert client.post("/search", json={"query": "flight", "threshold": 1}).json()["hits"] == []
    assert len(client.post("/search", json={"query": query, "top_k": 50}).json()["hits"]) == len(CAPTIONS)


def test_health(client: httpx.Client) -> None:
    assert client.get("/health").raise_for_status().json() == {
        "status": "ok",
        "model": "made",
        "width": WIDTH,
        "sentences": len(CAPTIONS),
        "waiting": 0,
        "needs_key": False,
    }


def test_a_server_without_an_index() -> None:
    with served(MadeModel()) as url:
        answer = httpx.post(f"{url}/search", json={"query": "sun"})
        assert answer.status_code == 409
        assert "--corpus" in answer.json()["detail"]
        assert httpx.get(f"{url}/health").json()["sentences"] is None


def test_the_model_is_called_by_one_thread(client: httpx.Client, model: MadeModel) -> None:
    for _ in range(3):
        client.post("/v1/embeddings", json={"input": "sun", "model": "any"}).raise_for_status()
    assert len(model.threads) == 1


# OpenAI's shape -------------------------------------------------------------------------------------------------------


def test_the_openai_client(client: httpx.Client) -> None:
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as asking:
        several: list[dict[str, Any]] = [{}, {"encoding_format": "float"}, {"dimensions": WIDTH}]
        for options in several:
            answer = asking.embeddings.create(model="any", input=["sun and moon", "sea"], **options)
            found = np.array([item.embedding for item in answer.data], np.float32)
            np.testing.assert_allclose(found, [hashed("sun and moon"), hashed("sea")], atol=1e-7)
            assert [item.index for item in answer.data] == [0, 1]
            assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("made", 8, 8)
        with pytest.raises(openai.BadRequestError, match="dimensions") as caught:
            asking.embeddings.create(model="any", input="sun", dimensions=7)
        assert caught.value.type == "invalid_request_error"


def test_openai_base64(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", json={"input": "sun", "model": "m", "encoding_format": "base64"}).json()
    (item,) = answer["data"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(item["embedding"]), "<f4"), hashed("sun"))


def test_openai_failures_have_openai_shape(client: httpx.Client) -> None:
    for content, kind, status in (("{", "application/json", 400), ("{}", "text/plain", 415)):
        answer = client.post("/v1/embeddings", content=content, headers={"Content-Type": kind})
        assert answer.status_code == status
        assert sorted(answer.json()["error"]) == ["code", "message", "param", "type"]
    assert "message" in client.get("/v1/models").json()["error"]


# What may pass --------------------------------------------------------------------------------------------------------


def test_json_may_say_its_encoding(client: httpx.Client) -> None:
    named = {"Content-Type": "application/json; charset=utf-8"}
    assert client.post("/encode", content=b'{"texts": "a"}', headers=named).status_code == 200


def test_a_body_without_a_length_is_counted_as_it_comes(client: httpx.Client) -> None:
    assert client.post("/encode", content=iter([b'{"texts"', b': "a"}']), headers=JSON).status_code == 200
    assert client.post("/encode", content=iter([b" " * 1000] * 30), headers=JSON).status_code == 413


def test_the_names_that_are_known(client: httpx.Client) -> None:
    for name in ("LOCALHOST:9", "[::1]", "127.0.0.1"):
        assert client.get("/health", headers={"Host": name}).status_code == 200
    with served(MadeModel(), Settings(hosts=("Search.Example",))) as url:
        for name in ("search.example", "Search.Example:443"):
            assert httpx.get(f"{url}/health", headers={"Host": name}).status_code == 200
    assert Settings(host="0.0.0.0").known_hosts == ()


def test_every_answer_has_the_headers_and_tells_no_version(client: httpx.Client) -> None:
    for path in ("/", "/docs", "/openapi.json", "/health", "/nowhere", "/encode"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "unsafe" not in headers["Content-Security-Policy"]


# Limits ---------------------------------------------------------------------------------------------------------------


def _post(url: str, texts: list[str], found: list[httpx.Response]) -> threading.Thread:
    """Return a client in a thread of its own. It retries where the server says so, as /health is a request too."""

    def post() -> None:
        while (answer := httpx.post(f"{url}/encode", json={"texts": texts}, timeout=20)).status_code == 503:
            time.sleep(0.05)
        found.append(answer)

    thread = threading.Thread(target=post)
    thread.start()
    return thread


def test_clients_are_encoded_together() -> None:
    model, found = MadeModel(), []
    with served(model) as url:
        model.gate.clear()
        threads = [_post(url, ["first"], found)]
        assert model.entered.wait(10)
        threads += [_post(url, [f"text {n}"], found) for n in range(20)]
        wait_until(lambda: httpx.get(f"{url}/health").json()["waiting"] == 20)
        model.gate.set()
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in found] == [200] * 21
    assert [len(call) for call in model.calls] == [1, 20]


def test_tokens_are_counted_for_those_who_ask_also_in_a_shared_call() -> None:
    model = MadeModel()
    with served(model) as url:
        model.gate.clear()
        threads = [_post(url, ["first"], [])]
        assert model.entered.wait(10)
        found: dict[str, httpx.Response] = {}

        def ask(text: str) -> None:
            found[text] = httpx.post(f"{url}/v1/embeddings", json={"input": text}, timeout=20)

        for count, text in ((1, "one two three"), (3, "one")):
            threads.append(_post(url, ["not counted"], []))
            wait_until(lambda count=count: httpx.get(f"{url}/health").json()["waiting"] == count)
            threads.append(threading.Thread(target=ask, args=(text,)))
            threads[-1].start()
            wait_until(lambda count=count: httpx.get(f"{url}/health").json()["waiting"] == count + 1)
        model.gate.set()
        for thread in threads:
            thread.join()
    assert [len(call) for call in model.calls] == [1, 4]
    assert {text: answer.json()["usage"]["prompt_tokens"] for text, answer in found.items()} == {
        "one two three": 5,
        "one": 3,
    }


@contextmanager
def busy(settings: Settings, texts: list[str], until: Callable[[str], bool]) -> Iterator[str]:
    """Yield a server that works on one request while a second one, of these texts, waits; answer both in the end."""
    model, found = MadeModel(), []
    with served(model, settings) as url:
        model.gate.clear()
        threads = [_post(url, ["first"], found)]
        assert model.entered.wait(10)
        threads.append(_post(url, texts, found))
        wait_until(lambda: until(url))
        try:
            yield url
        finally:
            model.gate.set()
        for thread in threads:
            thread.join()
        assert httpx.get(f"{url}/health").status_code == 200
    assert [answer.status_code for answer in found] == [200, 200]


def test_a_full_queue_is_503_with_retry_after() -> None:
    settings = Settings(max_waiting=2)
    with busy(settings, ["a", "b"], lambda url: httpx.get(f"{url}/health").json()["waiting"] == 2) as url:
        for path, body in (("/encode", {"texts": "c"}), ("/v1/embeddings", {"input": "c"})):
            answer = httpx.post(f"{url}{path}", json=body)
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "1"


def test_too_many_requests_at_once_are_503_with_retry_after() -> None:
    settings = Settings(max_requests=2)
    with busy(settings, ["second"], lambda url: httpx.get(f"{url}/health").status_code == 503) as url:
        for path, body, shape in (("/encode", {"texts": "c"}, "detail"), ("/v1/embeddings", {"input": "c"}, "error")):
            answer = httpx.post(f"{url}{path}", json=body)
            assert (answer.status_code, answer.headers["Retry-After"], list(answer.json())) == (503, "1", [shape])


def test_the_time_limit_is_504_and_a_slow_body_408() -> None:
    model = MadeModel()
    with served(model, Settings(time_limit_s=0.3)) as url:
        model.gate.clear()
        answer = httpx.post(f"{url}/encode", json={"texts": "a"}, timeout=20)
        model.gate.set()
        assert answer.status_code == 504
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as slow:
            slow.sendall(b"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            slow.sendall(b"Content-Length: 50\r\n\r\n{")
            assert b" 408 " in slow.recv(1000)


def test_a_client_that_hangs_up_is_not_encoded() -> None:
    model, found = MadeModel(), []
    with served(model) as url:
        model.gate.clear()
        first = _post(url, ["first"], found)
        assert model.entered.wait(10)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/encode", json={"texts": "gone"}, timeout=httpx.Timeout(20, read=2))
        wait_until(lambda: httpx.get(f"{url}/health").json()["waiting"] == 0)
        model.gate.set()
        first.join()
        httpx.post(f"{url}/encode", json={"texts": "last"}).raise_for_status()
    assert model.calls == [["first"], ["last"]]


def test_a_failure_of_the_model_is_500_and_nobody_elses(caplog: pytest.LogCaptureFixture) -> None:
    with served(MadeModel()) as url:
        answer = httpx.post(f"{url}/encode", json={"texts": "poison"})
        assert answer.status_code == 500
        assert list(answer.json()) == ["detail"]
        assert "poison" not in answer.text
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert httpx.post(f"{url}/encode", json={"texts": "sun"}).status_code == 200
    assert "poisoned" in caplog.text


# The key and the settings ---------------------------------------------------------------------------------------------

OPEN = {"/", "/docs", "/openapi.json", "/health"}
WRONG_KEYS = (None, "secret key", "Bearer", "Bearer secret", "Bearer secret keys", "Basic secret key", "é")


def walked(routes: list[Any]) -> Iterator[Any]:
    """Yield every route, also those of included routers, which newer releases of FastAPI keep apart."""
    for route in routes:
        yield from walked(route.original_router.routes) if hasattr(route, "original_router") else [route]


def test_every_route_wants_the_key_and_json() -> None:
    app = make_app(MadeModel(MadeIndex()), Settings(api_key="secret key"))
    routes = sorted((method, route.path) for route in walked(app.routes) for method in route.methods)
    assert {path for _, path in routes} >= OPEN
    assert {path for method, path in routes if method == "POST"} == VALID.keys()
    right = {"Authorization": "bearer secret key"}
    with TestClient(app, "http://localhost") as client:
        for method, path in [*routes, ("GET", "/nowhere"), ("POST", "/v1/models")]:
            for given in WRONG_KEYS:
                headers = {b"Authorization": given.encode("latin-1")} if given else {}
                answer = client.request(method, path, json=VALID.get(path), headers=headers)
                assert answer.status_code == (200 if path in OPEN else 401), (method, path, given)
                assert path in OPEN or answer.headers["WWW-Authenticate"] == "Bearer"
        for path, body in VALID.items():
            assert client.post(path, json=body, headers=right).status_code == 200
            form = {"Content-Type": "text/plain"} | right
            assert client.post(path, content=json.dumps(body), headers=form).status_code == 415
        described = client.get("/openapi.json").json()["paths"]
        assert all("security" in described[path]["post"] for path in VALID)


def test_openai_clients_send_the_key() -> None:
    with served(MadeModel(), Settings(api_key="secret key")) as url:
        for key in ("secret key", "wrong"):
            with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as asking:
                if key == "wrong":
                    with pytest.raises(openai.AuthenticationError):
                        asking.embeddings.create(model="any", input="sun")
                else:
                    assert len(asking.embeddings.create(model="any", input="sun").data[0].embedding) == WIDTH


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"port": 70000}, "port is 70000"),
        ({"max_texts": 0}, "max_texts is 0"),
        ({"time_limit_s": float("nan")}, "time_limit_s is nan"),
        ({"host": ""}, "host"),
        ({"api_key": ""}, "API key"),
        ({"api_key": "secret "}, "API key"),
        ({"api_key": "schlüssel"}, "API key"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=name):
        Settings(**wrong)


# The description ------------------------------------------------------------------------------------------------------


def test_docs_load_nothing_and_show_every_route(client: httpx.Client) -> None:
    page = client.get("/docs").raise_for_status().text
    for path in client.get("/openapi.json").json()["paths"]:
        assert path in page
    assert "{&#34;queries&#34;: [&#34;A man" in page  # in the order of the fields
    for text in (page, client.get("/").raise_for_status().text):
        assert not re.search(r"(src|href)=\"?(https?:)?//|url\(|@import", text)
