"""Test the measures of rankings against pytrec_eval, query by query, and against sentence-transformers."""

from typing import Any

import numpy as np
import pytest

from simcse_jax.evaluation.retrieval.measures import NAMES, Ranking, measure
from simcse_jax.evaluation.retrieval.task import evaluate_retrieval, rank
from tests.evaluation.retrieval.made_retrieval import (
    THEIRS,
    TREC,
    TheirModel,
    random_task,
    scored,
    trec_scores,
    vectors_for,
)


@pytest.mark.parametrize(
    ("documents", "most", "highest"),
    [(300, 20, 3), (400, 150, 1), (7, 4, 2)],
    ids=["grades", "more relevant than ranks", "fewer documents than ranks"],
)
def test_every_query_is_measured_as_by_trec_eval(documents: int, most: int, highest: int) -> None:
    task, encode = random_task(1, 40, documents, highest, most), vectors_for()
    expected = trec_scores(scored(encode, task), task.relevant)
    ranking = rank(encode, task)
    assert {*TREC, "mrr@10"} == {*NAMES} - {"binary_ndcg@10", "capped_map@100"}
    for name, values in expected.items():
        np.testing.assert_allclose(measure(ranking, name), values, atol=1e-9, err_msg=name)
    assert measure(ranking, "ndcg@10").std() > 0.01


@pytest.mark.medium
@pytest.mark.parametrize(("documents", "most"), [(300, 20), (400, 150), (7, 4)])
@pytest.mark.parametrize("signs", [False, True], ids=["", "many equal scores"])
def test_means_are_those_of_sentence_transformers(documents: int, most: int, signs: bool) -> None:
    """Equal scores are ranked by id, whatever the chunks of its corpus and of ours."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    task, encode = random_task(2, 40, documents, 3, most), vectors_for(width=4 if signs else 12, signs=signs)
    relevant = {query: set(own) for query, own in task.relevant.items()}
    theirs = InformationRetrievalEvaluator(task.queries, task.documents, relevant, corpus_chunk_size=64)
    stand_in: Any = TheirModel(encode)
    expected = theirs(stand_in)
    found = evaluate_retrieval(encode, task, "made").values
    for ours, name in THEIRS.items():
        assert found[ours] == pytest.approx(100 * expected[f"cosine_{name}"], abs=1e-4), ours


def test_where_the_two_differ() -> None:
    """Grades count in nDCG, and MAP divides by all relevant documents, as in trec_eval; and the other way by name."""
    gains = np.array([[1.0, 0, 3]])
    ranking = Ranking(gains, np.array([[3.0, 1, 0]]), np.array([5]))
    assert measure(ranking, "ndcg@3") == pytest.approx((1 + 3 / 2) / (3 + 1 / np.log2(3)))
    assert measure(ranking, "binary_ndcg@3") == pytest.approx((1 + 1 / 2) / (1 + 1 / np.log2(3)))
    assert measure(ranking, "map@3") == pytest.approx((1 + 2 / 3) / 5)
    assert measure(ranking, "capped_map@3") == pytest.approx((1 + 2 / 3) / 3)
