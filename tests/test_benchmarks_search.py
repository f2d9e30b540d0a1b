"""The benchmark of search: every side finds what NumPy finds, and the results are complete."""

import json

import numpy as np
import pytest

from benchmarks import search_speed


def test_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("faiss")
    faiss.omp_set_num_threads(1)
    monkeypatch.setattr(search_speed, "BLOCK", 500)
    figures = json.loads(json.dumps(search_speed.measure(1200, 16, 7, 10, rounds=2, kinds=["hnsw"])))
    names = ["exact, float32", "exact, float16", "exact, int8", "NumPy", "faiss IndexFlatIP"]
    names += ["binary, float32", "binary, int8", "hnsw, float32"]
    assert list(figures["sides"]) == names
    assert list(figures["ratio"]) == names[1:]
    for name, side in figures["sides"].items():
        assert side["recall@10"] >= (0.85 if "int8" in name else 0.98)
        assert len(side["seconds"]["all"]) == 2
        assert side["extra_bytes"] >= 0
    assert len(search_speed.table(figures)) == 10
    sizes = {name: side["bytes"] for name, side in figures["sides"].items() if "bytes" in side}
    assert (sizes["exact, float32"], sizes["exact, int8"], sizes["binary, int8"]) == (64, 20, 24)


def test_numpys_side_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_speed, "BLOCK", 70)
    draw = search_speed.made(300, 24)
    vectors, queries = draw(300), draw(9)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=0, atol=1e-6)
    expected = np.argsort(-(queries.astype(np.float64) @ vectors.T), axis=1)[:, :12]
    np.testing.assert_array_equal(search_speed.numpy_search(vectors, queries, 12), expected)
