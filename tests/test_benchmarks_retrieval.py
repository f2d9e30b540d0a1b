"""The benchmark of retrieval, on a small model: all values of both peers are equal to ours, or it fails."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import retrieval
from simcse_jax.data import demo
from simcse_jax.system.errors import UserError

pytest.importorskip("sentence_transformers")
pytest.importorskip("pytrec_eval")


def test_texts_of_equal_vectors_are_one_document() -> None:
    task = retrieval.task_of("made", [("a", "One dog."), ("b", "two")], ["one dog .", "One dog.", "two"])
    assert task.documents == {"d000000": "one dog .", "d000001": "two"}
    assert task.relevant == {"q000000": {"d000000": 1}, "q000001": {"d000001": 1}}


@pytest.mark.slow
def test_results_of_all_sides(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = demo.triplets(count=80)
    (tmp_path / "nli.csv").write_text("sent0,sent1,hard_neg\n" + "".join(f'"{a}","{b}","{c}"\n' for a, b, c in rows))
    sentences = demo.sentences(count=200)
    (tmp_path / "docs.txt").write_text("\n\n".join("\n".join(sentences[n : n + 5]) for n in range(0, 200, 5)))
    tasks = [
        retrieval.nli_task(str(tmp_path / "nli.csv"), 40),
        retrieval.sts_task("demo:test"),
        retrieval.wiki_task(str(tmp_path / "docs.txt"), 150),
    ]
    assert [len(task.queries) for task in tasks[::2]] == [40, 150]
    found = retrieval.measure(str(small_model), tasks)
    for own in found.values():
        assert own["worst difference"] <= retrieval.CLOSE
        assert len(own["values"]) == 2 * 15 + 1
        assert min(own["seconds"].values()) > 0

    def off(*_: Any) -> dict[str, float]:
        return {"ndcg@10": 0.123}

    monkeypatch.setattr(retrieval, "trec_values", off)
    with pytest.raises(UserError, match=r"STS-B test: pytrec_eval ndcg@10 is 0.123"):
        retrieval.measure(str(small_model), tasks[1:2])
