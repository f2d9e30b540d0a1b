"""The server's routes, as clients meet them on loopback: what they answer, refuse, and say."""

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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

SMALL = Settings(name="made", max_body=20_000)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with served(MadeModel(MadeIndex()), SMALL) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


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
    assert [sorted(hit) for hit in hits] == [["id", "score", "text"]] * 3
    assert hits[0]["text"] == CAPTIONS[hits[0]["id"]] == CAPTIONS[0]
    several = client.post("/search", json={"queries": [query, "rain"], "top_k": 3}).json()["hits"]
    assert several[0] == [hit | {"score": pytest.approx(hit["score"], abs=1e-6)} for hit in hits]
    assert len(several) == 2
    high = client.post("/search", json={"query": query, "threshold": 0.99}).json()["hits"]
    assert [hit["text"] for hit in high] == [CAPTIONS[0]]
    assert client.post("/search", json={"query": query, "threshold": None, "top_k": 3.0}).json()["hits"] == hits
    assert client.post("/search", json={"query": "flight", "threshold": 1}).json()["hits"] == []


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


# OpenAI's shape -------------------------------------------------------------------------------------------------------


def test_the_openai_client() -> None:
    with served(MadeModel(), Settings(name="made", api_key="secret key")) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="secret key", max_retries=0) as asking:
            several: list[dict[str, Any]] = [{}, {"encoding_format": "float"}, {"dimensions": WIDTH}]
            for options in several:  # base64 is the default
                answer = asking.embeddings.create(model="any", input=["sun and moon", "sea"], **options)
                found = np.array([item.embedding for item in answer.data], np.float32)
                np.testing.assert_array_equal(found, [hashed("sun and moon"), hashed("sea")])
                assert [item.index for item in answer.data] == [0, 1]
                assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("made", 8, 8)
            with pytest.raises(openai.BadRequestError, match="dimensions") as caught:
                asking.embeddings.create(model="any", input="sun", dimensions=7)
            assert caught.value.type == "invalid_request_error"
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as asking,
            pytest.raises(openai.AuthenticationError),
        ):
            asking.embeddings.create(model="any", input="sun")


# What may pass --------------------------------------------------------------------------------------------------------


def test_json_may_say_its_encoding_and_come_without_a_length(client: httpx.Client) -> None:
    named = {"Content-Type": "application/json; charset=utf-8"}
    assert client.post("/encode", content=b'{"texts": "a"}', headers=named).status_code == 200
    assert client.post("/encode", content=iter([b'{"texts"', b': "a"}']), headers=named).status_code == 200


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


@contextmanager
def busy(settings: Settings | None = None) -> Iterator[tuple[str, MadeModel, Callable[..., Future[httpx.Response]]]]:
    """Yield a server whose model works on one request to the end, and a function that posts without waiting."""
    model = MadeModel()
    with served(model, settings) as url, ThreadPoolExecutor(8) as threads:

        def post(path: str, **body: Any) -> Future[httpx.Response]:
            return threads.submit(httpx.post, f"{url}{path}", json=body, timeout=20)

        model.gate.clear()
        first = post("/encode", texts="first")
        assert model.entered.wait(10)
        try:
            yield url, model, post
        finally:
            model.gate.set()
        assert first.result().status_code == 200


def wait_until_waiting(url: str, count: int) -> None:
    end = time.monotonic() + 10
    while httpx.get(f"{url}/health").raise_for_status().json()["waiting"] != count:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_clients_are_encoded_together_and_tokens_counted_for_those_who_ask() -> None:
    found: list[Future[httpx.Response]] = []
    with busy() as (url, model, post):
        for path, body in [
            ("/encode", {"texts": "not counted"}),
            ("/v1/embeddings", {"input": "one two three"}),
            ("/encode", {"texts": "not counted"}),
            ("/v1/embeddings", {"input": "one"}),
        ]:
            found.append(post(path, **body))
            wait_until_waiting(url, len(found))
    assert [len(call) for call in model.calls] == [1, 4]
    assert len(model.threads) == 1
    assert [found[n].result().json()["usage"]["prompt_tokens"] for n in (1, 3)] == [5, 3]


@pytest.mark.parametrize(("limits", "waiting"), [(Settings(max_waiting=2), 2), (Settings(max_requests=1), 0)])
def test_too_much_at_once_is_503_with_retry_after(limits: Settings, waiting: int) -> None:
    with busy(limits) as (url, _, post):
        if waiting:
            post("/encode", texts=["a"] * waiting)
            wait_until_waiting(url, waiting)
        for path, body, shape in (("/encode", {"texts": "c"}, "detail"), ("/v1/embeddings", {"input": "c"}, "error")):
            answer = httpx.post(f"{url}{path}", json=body)
            assert (answer.status_code, answer.headers["Retry-After"], list(answer.json())) == (503, "1", [shape])


def test_the_time_limit_is_504() -> None:
    model = MadeModel()
    with served(model, Settings(time_limit_s=0.3)) as url:
        model.gate.clear()
        assert httpx.post(f"{url}/encode", json={"texts": "a"}, timeout=20).status_code == 504
        model.gate.set()


def test_a_client_that_hangs_up_is_not_encoded() -> None:
    with busy() as (url, model, post):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/encode", json={"texts": "gone"}, timeout=httpx.Timeout(20, read=1))
        wait_until_waiting(url, 0)
        last = post("/encode", texts="last")
    assert last.result().status_code == 200
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
