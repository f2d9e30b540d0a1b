"""Score a model on a retrieval task: cosine of query and document, ranked over all documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from simcse_jax.evaluation.results import DOCUMENT, QUERY, Encode, Score, for_role
from simcse_jax.evaluation.retrieval.data import Retrieval
from simcse_jax.evaluation.retrieval.measures import DEPTH, HEADLINE, NAMES, Ranking, measure
from simcse_jax.evaluation.retrieval.search import expand_equal, nearest
from simcse_jax.system.vectors import check_vectors, normalize

CHUNK = 65536  # documents encoded at a time: their vectors, and no others, are in memory


def evaluate_retrieval(encode: Encode, data: Retrieval, task: str) -> Score:
    """Return the score of one task: each of NAMES, times 100, as a mean over queries."""
    ranking = rank(encode, data)
    each = {name: measure(ranking, name) for name in NAMES}
    protocol: dict[str, Any] = {
        "split": data.split,
        "queries": len(data.queries),
        "documents": len(data.documents),
        "relevant a query": round(float(ranking.relevant.mean()), 2),
        "aggregation": "mean over queries x 100, of rankings by cosine",
        "data": data.fingerprint,
    }
    if data.note:
        protocol["note"] = data.note
    values = {name: 100 * float(own.mean()) for name, own in each.items()}
    return Score(task, HEADLINE, values, protocol, each=each[HEADLINE])


def rank(encode: Encode, data: Retrieval) -> Ranking:
    """Return what each query finds among all documents, DEPTH ranks deep."""
    document_ids = list(data.documents)
    place_of = {document: place for place, document in enumerate(document_ids)}
    own = np.array([place_of.get(query, -1) if data.drops_self else -1 for query in data.queries], np.int64)
    found = _search(encode, data, DEPTH + bool((own >= 0).any()))
    if found.shape[1] > DEPTH:
        order = np.argsort(found == own[:, None], axis=1, kind="stable")  # its own document last, and out
        found = np.take_along_axis(found, order, axis=1)[:, :DEPTH]
    return _graded(found, data, place_of)


def _search(encode: Encode, data: Retrieval, depth: int) -> np.ndarray:
    """Return the places of the nearest documents, int64[Q, depth]; -1 where there are no more.

    Each text is encoded and scored once, so that documents of one text have equal scores to the last bit.
    """
    first: dict[str, int] = {}
    text_of = np.array([first.setdefault(text, len(first)) for text in data.documents.values()], np.int64)
    texts, queries = list(first), list(data.queries.values())

    as_query, as_document = for_role(encode, QUERY), for_role(encode, DOCUMENT)

    def unit(encode: Encode, some: list[str]) -> np.ndarray:
        return normalize(check_vectors(np.asarray(encode(some)), some, data.name)).astype(np.float32)

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, len(texts), CHUNK):
            yield unit(as_document, texts[start : start + CHUNK])

    place_of = {text: place for place, text in enumerate(dict.fromkeys([*texts, *queries]))}
    if as_query is as_document and len(place_of) <= CHUNK:  # together, as queries may be documents, too
        vectors = unit(as_query, list(place_of))
        asked = vectors[[place_of[query] for query in queries]]
        scores, places = nearest(asked, [vectors[: len(texts)]], depth)
    else:
        scores, places = nearest(unit(as_query, queries), chunks(), depth)
    if len(texts) == len(text_of):
        return places
    starts = np.searchsorted(np.sort(text_of), np.arange(len(texts) + 1))
    return expand_equal(scores, places, np.argsort(text_of, kind="stable"), starts, depth)[1]


def _graded(found: np.ndarray, data: Retrieval, place_of: dict[str, int]) -> Ranking:
    """Return the ranking of the documents at these places, int64[Q, K]."""
    gains, ideal = np.zeros(found.shape), np.zeros(found.shape)
    relevant = np.zeros(len(found), np.int64)
    for row, grades in enumerate(data.relevant[query] for query in data.queries):
        relevant[row] = len(grades)
        best = sorted(grades.values(), reverse=True)[: found.shape[1]]
        ideal[row, : len(best)] = best
        for document, grade in grades.items():
            if document in place_of:
                gains[row, found[row] == place_of[document]] = grade
    return Ranking(gains, ideal, relevant)
