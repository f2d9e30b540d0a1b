"""The server with a model of ours: the same answers over HTTP as in Python, also after it was killed."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from simcse_jax import SimCSE
from simcse_jax.data import demo
from simcse_jax.serving.web.guard import Settings
from tests.serving.web.servers import process, served

TEXTS = demo.sentences(count=40)


@pytest.fixture(scope="module")
def model(small_model: Path) -> Any:
    made = SimCSE(small_model)
    made.build_index(TEXTS)
    return made


@pytest.fixture(scope="module")
def client(model: Any) -> Iterator[httpx.Client]:
    with served(model, Settings(name="small")) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


def test_the_same_answers_as_in_python(model: Any, client: httpx.Client) -> None:
    found = client.post("/encode", json={"texts": TEXTS}).raise_for_status().json()
    np.testing.assert_allclose(np.array(found["vectors"], np.float32), model.encode(TEXTS), atol=1e-6)
    cosines = client.post("/similarity", json={"queries": TEXTS[:3], "keys": TEXTS[3:8]}).json()["similarity"]
    np.testing.assert_allclose(cosines, model.similarity(TEXTS[:3], TEXTS[3:8]), atol=1e-6)
    hits = client.post("/search", json={"queries": TEXTS[:4], "top_k": 7, "threshold": 0.5}).json()["hits"]
    expected = model.search(TEXTS[:4], 7, 0.5)
    assert [[hit["id"] for hit in one] for one in hits] == [[hit.id for hit in one] for one in expected]
    assert [[hit["text"] for hit in one] for one in hits] == [[hit.text for hit in one] for one in expected]
    assert hits[0][0]["text"] == TEXTS[0]


def test_tokens_are_counted_as_the_model_reads_them(client: httpx.Client) -> None:
    count = client.post("/v1/embeddings", json={"input": ["", "a man " * 500]}).json()["usage"]["prompt_tokens"]
    assert count == 2 + 64  # the special ones alone, and cut at what this model takes
    refused = client.post("/encode", json={"texts": ["", "a man " * 500], "truncate": False})
    assert refused.status_code == 422
    assert "Text 1 has 1,002 tokens" in refused.text


@pytest.mark.slow
def test_a_killed_server_leaves_the_index_whole(model: Any, small_model: Path, tmp_path: Path) -> None:
    sentences, index = tmp_path / "sentences.txt", tmp_path / "index"
    sentences.write_text("\n".join(TEXTS))
    query, expected = {"queries": TEXTS[:4], "top_k": 7}, model.search(TEXTS[:4], 7)
    kept: list[dict[str, bytes]] = []
    for corpus in ([f"--corpus={sentences}", f"--save_index={index}"], [f"--corpus={index}"]):
        with process("simcse_jax.search", f"--model={small_model}", *corpus, "--serve", "--port=0") as (server, url):
            hits = httpx.post(f"{url}/search", json=query, timeout=60).raise_for_status().json()["hits"]
            assert [[hit["id"] for hit in one] for one in hits] == [[hit.id for hit in one] for one in expected]
            assert [[hit["text"] for hit in one] for one in hits] == [[hit.text for hit in one] for one in expected]
            asking = threading.Thread(target=_ask_until_it_is_gone, args=(url, query))
            asking.start()
            time.sleep(0.5)
            server.kill()
            asking.join()
        kept.append({str(file): file.read_bytes() for file in index.rglob("*") if file.is_file()})
    assert kept[0]
    assert kept[0] == kept[1]


def _ask_until_it_is_gone(url: str, query: dict[str, Any]) -> None:
    with contextlib.suppress(httpx.TransportError), httpx.Client(timeout=60) as client:
        while True:
            client.post(f"{url}/search", json=query).raise_for_status()
