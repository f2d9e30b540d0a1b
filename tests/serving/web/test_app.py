"""The server's routes, as clients meet them on loopback: what they answer, refuse, and say."""

import json
import re
import socket
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
from tests.serving.web.servers import answered, served
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


def test_shorter_vectors(client: httpx.Client) -> None:
    """Of a Matryoshka loss: the first features, of length 1."""
    answer = client.post("/encode", json={"texts": ["sun", "moon"], "dimensions": WIDTH // 2}).raise_for_status().json()
    halves = np.stack([hashed(text)[: WIDTH // 2] for text in ("sun", "moon")])
    expected = halves / np.linalg.norm(halves, axis=1, keepdims=True)
    np.testing.assert_allclose(answer["vectors"], expected, atol=1e-7)
    assert answer["width"] == WIDTH // 2
    for dimensions, status in ((WIDTH, 200), (None, 200), (7, 422), (0, 422), ("8", 422)):
        answer = client.post("/encode", json={"texts": "sun", "dimensions": dimensions})
        assert answer.status_code == status
        assert status == 200 or "dimensions" in answer.text


def test_a_prompt_of_the_model_is_put_before_each_text(client: httpx.Client) -> None:
    prompt, name = "someone asks ", {"prompt_name": "query"}
    vectors = client.post("/encode", json={"texts": ["sun", "moon"]} | name).raise_for_status().json()["vectors"]
    np.testing.assert_allclose(vectors, [hashed(f"{prompt}{text}") for text in ("sun", "moon")], atol=1e-7)
    cosine = client.post("/similarity", json={"queries": "sun", "keys": "moon"} | name).json()["similarity"][0][0]
    assert cosine == pytest.approx(hashed(f"{prompt}sun") @ hashed(f"{prompt}moon"), abs=1e-6)
    hit = client.post("/search", json={"query": "sun", "top_k": 1} | name).json()["hits"][0]
    assert hit["score"] == pytest.approx(hashed(f"{prompt}sun") @ hashed(hit["text"]), abs=1e-6)
    answer = client.post("/v1/embeddings", json={"input": ["sun"]} | name).json()
    np.testing.assert_allclose(answer["data"][0]["embedding"], hashed(f"{prompt}sun"), atol=1e-7)
    assert answer["usage"]["prompt_tokens"] == 5  # those of the prompt count
    for path, body in VALID.items():
        refused = client.post(path, json=body | {"prompt_name": "passage"})
        assert refused.status_code == (400 if path.startswith("/v1") else 422)
        assert "query, document" in refused.text
        assert client.post(path, json=body | {"prompt_name": None}).status_code == 200
    for truncate, status in ((True, 200), (False, 422)):
        body = {"texts": "a " * 125, "truncate": truncate} | name
        assert client.post("/encode", json=body).status_code == status  # too long with the prompt alone


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
        "widths": [WIDTH // 2, WIDTH],
        "max_length": 128,
        "sentences": len(CAPTIONS),
        "prompts": ["query", "document"],
        "waiting": 0,
        "needs_key": False,
    }


def test_a_server_without_an_index() -> None:
    with served(MadeModel()) as url:
        answer = httpx.post(f"{url}/search", json={"query": "sun"})
        assert answer.status_code == 409
        assert "--corpus" in answer.json()["detail"]
        assert httpx.get(f"{url}/health").json()["sentences"] is None


class Broken(MadeModel):
    def encode(self, sentences: list[str], *, prompt: str | None = None) -> np.ndarray:
        return super().encode(["nan"] * len(sentences))


class Refusing(MadeModel):
    def encode(self, sentences: list[str], *, prompt: str | None = None) -> np.ndarray:
        raise UserError(f"{len(sentences)} vectors are not finite.")


def test_a_vector_that_is_not_finite_is_an_error(client: httpx.Client) -> None:
    for path, body in VALID.items():
        for encoding in ("float", "base64"):
            texts = {key: ["a", "nan"] if path == "/encode" else "nan" for key in body} | {"encoding_format": encoding}
            answer = client.post(path, json=texts if path.startswith("/v1") else {key: texts[key] for key in body})
            assert answer.status_code == 500, (path, answer.text)
            assert "not finite" in answer.text
    assert "Text 1 " in client.post("/encode", json={"texts": ["a", "nan"]}).json()["detail"]
    for model in (Broken(), Refusing()):
        with served(model) as url:
            for answer in (httpx.post(f"{url}/encode", json={"texts": "a"}), httpx.get(f"{url}/health")):
                assert answer.status_code == (500 if answer.request.method == "POST" else 503)
                assert "not finite" in answer.json()["detail"]


def test_health_is_503_when_the_model_hangs_and_not_when_it_is_busy() -> None:
    model = MadeModel()
    with served(model, Settings(time_limit_s=0.5)) as url, ThreadPoolExecutor() as threads:
        model.gate.clear()
        threads.submit(httpx.post, f"{url}/encode", json={"texts": "a"})
        assert model.entered.wait(10)
        assert httpx.get(f"{url}/health").status_code == 200
        time.sleep(0.6)
        assert httpx.get(f"{url}/health").status_code == 503
        model.gate.set()
    assert model.calls == [["a"]]


def test_texts_are_cut_or_refused_on_demand(client: httpx.Client) -> None:
    for path, body in VALID.items():
        for truncate, status in ((None, 200), (True, 200), (False, 400 if path.startswith("/v1") else 422)):
            for words in (126, 127):  # with special tokens, as long as may be, and one more
                answer = client.post(path, json=dict.fromkeys(body, "a " * words) | {"truncate": truncate})
                assert answer.status_code == (status if words == 127 else 200), (path, truncate)
    assert "129 tokens" in client.post("/encode", json={"texts": "a " * 127, "truncate": False}).text


# OpenAI's shape -------------------------------------------------------------------------------------------------------


def test_the_openai_client() -> None:
    with served(MadeModel(), Settings(name="made", api_key="secret key")) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="secret key", max_retries=0) as asking:
            several: list[dict[str, Any]] = [{}, {"encoding_format": "float"}, {"dimensions": WIDTH}]
            several += [{"extra_body": dict.fromkeys(["encoding_format", "dimensions", "user", "model", "truncate"])}]
            for options in several:  # base64 is the default
                answer = asking.embeddings.create(model="any", input=["sun and moon", "sea"], **options)
                found = np.array([item.embedding for item in answer.data], np.float32)
                np.testing.assert_array_equal(found, [hashed("sun and moon"), hashed("sea")])
                assert [item.index for item in answer.data] == [0, 1]
                assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("made", 8, 8)
            short = asking.embeddings.create(model="any", input="sun", dimensions=WIDTH // 2).data[0].embedding
            half = hashed("sun")[: WIDTH // 2]
            np.testing.assert_allclose(short, half / np.linalg.norm(half), atol=1e-7)  # of a Matryoshka loss
            assert [one.id for one in asking.models.list()] == [asking.models.retrieve("made").id] == ["made"]
            with pytest.raises(openai.NotFoundError, match="no model other"):
                asking.models.retrieve("other")
            assert len(asking.embeddings.create(model="any", input=["a"] * 2048).data) == 2048
            with pytest.raises(openai.BadRequestError, match="dimensions") as caught:
                asking.embeddings.create(model="any", input="sun", dimensions=7)
            assert caught.value.type == "invalid_request_error"
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as asking,
            pytest.raises(openai.AuthenticationError),
        ):
            asking.embeddings.create(model="any", input="sun")


def test_null_means_left_out(client: httpx.Client) -> None:
    nulls = dict.fromkeys(["queries", "top_k", "threshold", "truncate"])
    assert client.post("/search", json={"query": "sun"} | nulls).json() == (
        client.post("/search", json={"query": "sun"}).json()
    )


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


def test_head_is_get_without_the_body(client: httpx.Client) -> None:
    for path in ("/", "/docs", "/health"):
        answer, whole = client.head(path), client.get(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["Content-Length"] == whole.headers["Content-Length"]


def test_a_connection_may_be_idle_for_longer_than_a_request_may_take() -> None:
    with served(MadeModel(), Settings(time_limit_s=0.3, keep_alive_s=1)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as idle:
            for pause_s in (0, 0.6):
                time.sleep(pause_s)
                idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert answered(idle) == 200
            assert idle.recv(1) == b""
    assert Settings().keep_alive_s > 60  # what proxies keep theirs for


def test_request_ids(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    for given, is_kept in (("abc-1", True), ("a b", False), ("x" * 200, False), (None, False)):
        answer = client.get("/nowhere", headers={"X-Request-ID": given} if given else {})
        assert (answer.headers["X-Request-ID"] == given) == is_kept
        assert 0 < len(answer.headers["X-Request-ID"]) <= 128
    answer = client.post("/encode", json={"texts": "poison"}, headers={"X-Request-ID": "abc-2"})
    assert (answer.status_code, answer.headers["X-Request-ID"]) == (500, "abc-2")
    assert "abc-2" in answer.json()["detail"]
    assert "abc-2" in caplog.text


def test_metrics() -> None:
    with served(MadeModel()) as url:
        for path in ("/encode", "/encode", "/v1/embeddings", f"/{time.time()}"):
            httpx.post(f"{url}{path}", json={"texts": "a", "input": "a"} if path.startswith("/v1") else {"texts": "a"})
        httpx.get(f"{url}/v1/models/other")
        httpx.post(f"{url}/search", content="a")
        httpx.get(f"{url}/search")
        lines = httpx.get(f"{url}/metrics").raise_for_status().text.splitlines()
    for line in (
        'simcse_requests_total{path="/encode",status="200"} 2.0',
        'simcse_requests_total{path="none",status="404"} 1.0',
        'simcse_requests_total{path="/v1/embeddings",status="200"} 1.0',
        'simcse_requests_total{path="/v1/models/{id:path}",status="404"} 1.0',
        'simcse_requests_total{path="/search",status="415"} 1.0',
        'simcse_requests_total{path="/search",status="405"} 1.0',
        'simcse_request_seconds_count{path="/encode"} 2.0',
        "simcse_waiting_texts 0.0",
    ):
        assert line in lines


def test_a_prefix_that_the_proxy_strips_or_not() -> None:
    with served(MadeModel(), Settings(path_prefix="/embed", api_key="key")) as url:
        for path in ("/health", "/embed/health", "/embed/", "/embed/docs"):
            assert httpx.get(f"{url}{path}").status_code == 200
        for path in ("/encode", "/embed/encode", "/embed/embed/health", "/embed/metrics", "/embedhealth"):
            assert httpx.post(f"{url}{path}", json={"texts": "a"}).status_code == 401
        key = {"Authorization": "Bearer key"}
        assert httpx.post(f"{url}/embed/encode", json={"texts": "a"}, headers=key).status_code == 200
        for path, status in (("/embed/nowhere", 404), ("/encode", 405)):
            answer = httpx.get(f"{url}{path}", headers=key)
            assert (answer.status_code, " /embed/docs" in answer.json()["detail"]) == (status, True)
        assert httpx.get(f"{url}/embed").headers["Location"] == "/embed/"
        assert httpx.get(f"{url}/embed/openapi.json").json()["servers"] == [{"url": "/embed"}]
        assert f"curl {url}/embed/encode" in httpx.get(f"{url}/embed/docs").text
        assert not re.search(r"""(href=|fetch\(|ask\()["']?/""", httpx.get(f"{url}/embed/").text)


def test_web_pages_of_named_origins_may_use_the_server() -> None:
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    asked |= {"Access-Control-Request-Headers": "authorization,content-type,x-stainless-os"}
    settings = Settings(api_key="key", origins=("https://app.example",))
    with served(MadeModel(), settings) as url, httpx.Client(base_url=url) as client:
        answer = client.options("/encode", headers=asked)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert "x-stainless-os" in answer.headers["Access-Control-Allow-Headers"]
        for origin, allowed in (("https://app.example", "https://app.example"), ("https://other.example", None)):
            answer = client.post("/encode", json={"texts": "a"}, headers={"Origin": origin})
            assert (answer.status_code, answer.headers.get("Access-Control-Allow-Origin")) == (401, allowed)
    with served(MadeModel()) as url:
        assert "Access-Control-Allow-Origin" not in httpx.get(f"{url}/health", headers=asked).headers


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
        ({"path_prefix": "/embed/"}, "path_prefix"),
        ({"path_prefix": "embed"}, "path_prefix"),
        ({"origins": ("https://app.example/",)}, "https://app.example/"),
        ({"api_key": ""}, "API key"),
        ({"api_key": "secret "}, "API key"),
        ({"api_key": "schlüssel"}, "API key"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=name):
        Settings(**wrong)


@pytest.mark.parametrize("prefix", ["/search", "/v1/embed"])
def test_a_prefix_is_no_route(prefix: str) -> None:
    with pytest.raises(UserError, match="search, similarity, v1"):
        make_app(MadeModel(), Settings(path_prefix=prefix))


# The description ------------------------------------------------------------------------------------------------------


def test_docs_load_nothing_and_show_every_route(client: httpx.Client) -> None:
    page = client.get("/docs").raise_for_status().text
    for path in client.get("/openapi.json").json()["paths"]:
        assert path in page
    assert "{&#34;queries&#34;: [&#34;A man" in page  # in the order of the fields
    for text in (page, client.get("/").raise_for_status().text):
        assert not re.search(r"(src|href)=\"?(https?:)?//|url\(|@import", text)
