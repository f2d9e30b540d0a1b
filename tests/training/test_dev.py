"""Test what scores a run while it trains: any kind of own data, any of its measures, or a part of the training data."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simcse_jax.data import demo
from simcse_jax.data.tokenise import text_hashes
from simcse_jax.embedding_model import open_model
from simcse_jax.evaluation.kinds import load_task, score_task
from simcse_jax.evaluation.retrieval.from_text import load_text
from simcse_jax.evaluation.retrieval.readers import read_folder
from simcse_jax.judging import report_run
from simcse_jax.model_folder.run_folder import load_run_params
from simcse_jax.runs.metrics import read_metrics
from simcse_jax.system.errors import UserError
from simcse_jax.training.display import conclude, describe
from simcse_jax.training.loop import train
from tests.evaluation.retrieval.made_retrieval import write_folder
from tests.small_models import prepare_small


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a retrieval task of the demo's sentences, in a folder."""
    folder = tmp_path_factory.mktemp("task")
    rows = demo.triplets(count=120, seed=7)
    lines = "\n".join(json.dumps({"title": a, "body": b}) for a, b, _ in rows)
    (folder / "rows.jsonl").write_text(lines + "\n")
    return f"retrieval:{write_folder(folder / 'task', load_text(str(folder / 'rows.jsonl')))}"


@pytest.mark.slow
def test_any_measure_of_any_kind_chooses_the_best(task: str, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"eval__data": task, "eval__measure": "mrr@10", "eval__every_steps": 1, "train__steps": 6}
    outcome = train(prepare_small(tmp_path / "run", tmp_path / "cache", **flags), tmp_path / "run")
    lines = [line for line in read_metrics(tmp_path / "run") if "dev/mrr@10" in line]
    assert [line["step"] for line in lines] == list(range(7))
    assert list(lines[0]) == ["step", "dev/mrr@10", "dev/ndcg@10", "dev/recall@10", "dev/map@100"]
    best = max(lines, key=lambda line: line["dev/mrr@10"])
    assert outcome.progress.best_step == best["step"]
    info = load_run_params(tmp_path / "run")[1]
    assert info["scores"]["mrr@10"] == pytest.approx(best["dev/mrr@10"], abs=1e-4)
    assert info["scores"]["queries"] == len(read_folder("", Path(task.removeprefix("retrieval:"))).queries)
    again = score_task(open_model(str(tmp_path / "run")).encode, load_task(task), task)
    assert again.values["mrr@10"] == pytest.approx(info["scores"]["mrr@10"], abs=1e-3)
    assert task in report_run(tmp_path / "run", task)
    assert "dev mrr@10 x 100" not in (tmp_path / "run" / "report.html").read_text()  # it is in the picture
    # A run of before the key goes on, and another measure would choose from scores that do not compare.
    config = tmp_path / "run" / "config.json"
    with pytest.raises(UserError, match=r"eval.measure: 'mrr@10' there, '' now"):
        prepare_small(tmp_path / "run", tmp_path / "cache", **flags | {"eval__measure": ""})
    stored = json.loads(config.read_text())
    del stored["recipe"]["eval.measure"]
    config.write_text(json.dumps(stored))
    prepare_small(tmp_path / "run", tmp_path / "cache", **flags | {"eval__measure": ""})


@pytest.mark.medium
def test_patience_counts_evaluations_of_the_measure(task: str, tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "eval__data": task,
        "eval__every_steps": 1,
        "eval__patience": 2,
        "train__steps": 30,
        "optimizer__learning_rate": 1e-30,
    }
    outcome = train(prepare_small(tmp_path / "run", tmp_path / "cache", **flags), tmp_path / "run")
    assert (outcome.step, outcome.progress.best_step) == (2, 0)
    said = "\n".join(conclude(prepare_small(tmp_path / "run", tmp_path / "cache", **flags), outcome, tmp_path / "run"))
    assert f"--{task.replace(':', '=', 1)}" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"eval__measure": "ndcg@10"},
            "(?s)eval.measure = 'ndcg@10': must be one of spearman, pearson.*measure=spearman",
        ),
        ({"eval__measure": "pearson", "eval__data": ""}, "eval.measure = 'pearson' has no effect with eval.data = ''"),
        ({"eval__data": "retrieval:/nowhere/at/all"}, "(?s)/nowhere/at/all.*--config.eval.data"),
        ({"eval__data": "heldout:1"}, "at least 2, such as heldout:500"),
        ({"eval__data": "heldout:many"}, "such as heldout:500"),
        ({"eval__data": "heldout:301"}, "301 rows cannot be held out of 600: at most half may be, 300"),
    ],
)
def test_what_cannot_score_a_run_is_refused(flags: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepare_small(tmp_path / "run", tmp_path / "cache", **flags)
    assert not (tmp_path / "run").exists()


def _documents(path: Path, count: int = 60) -> list[list[str]]:
    sentences = demo.sentences(count=4 * count)
    documents = [list(sentences[4 * n : 4 * n + 4]) for n in range(count)]
    path.write_text("\n\n".join("\n".join(document) for document in documents) + "\n\nSame.\n" + documents[0][0] + "\n")
    return documents


@pytest.mark.slow
def test_held_out_documents_are_scored_and_not_trained_on(tmp_path: Path) -> None:
    documents = _documents(tmp_path / "text.txt")
    flags: dict[str, Any] = {"data__files": str(tmp_path / "text.txt"), "eval__data": "heldout:12", "train__steps": 4}
    run = prepare_small(tmp_path / "run", tmp_path / "cache", **flags)
    task = read_folder("", tmp_path / "run" / "heldout")
    held = set(task.documents.values())
    chosen = [document for document in documents if set(document) <= held]
    assert 11 <= len(chosen) <= 12
    assert task.drops_self
    for document in chosen:
        for n, sentence in enumerate(document):
            [query] = [key for key, text in task.queries.items() if text == sentence]
            found = {task.documents[key] for key in task.relevant[query]}
            assert {*document[max(n - 1, 0) : n], *document[n + 1 : n + 2]} <= found
    assert not np.isin(run.corpus.hashes, text_hashes(sorted(held))).any()
    everything = [sentence for document in documents for sentence in document]
    kept = [text for text in [*everything, "Same.", documents[0][0]] if text not in held]
    np.testing.assert_array_equal(run.corpus.hashes[:, 0], text_hashes(kept))
    whole = prepare_small(tmp_path / "whole", tmp_path / "cache", data__files=str(tmp_path / "text.txt"))
    places = np.flatnonzero(~np.isin(whole.corpus.hashes[:, 0], text_hashes(sorted(held))))
    for mine, theirs in zip(
        run.corpus.token_ids(np.arange(len(run.corpus))), whole.corpus.token_ids(places), strict=True
    ):
        np.testing.assert_array_equal(mine[0], theirs[0])
    assert len(run.batches.examples) == len(kept)
    said = "\n".join(describe(run))
    assert f"held out for evaluation, with all equal texts: {len(everything) + 2 - len(kept)}" in said
    outcome = train(run, tmp_path / "run")
    assert run.dev is not None
    assert run.dev.measure.name == "ndcg@10"
    assert "score on heldout:12" in report_run(tmp_path / "run", "heldout:12")
    judge = f"--model={tmp_path / 'run'} --retrieval={tmp_path / 'run' / 'heldout'}"
    assert f"evaluate {judge}" in "\n".join(conclude(run, outcome, tmp_path / "run"))
    for layers, flag in (("", "--model=start:avg "), ("0", "")):  # no folder has some of its layers
        start = dataclasses.replace(run.config.model, init="pretrained", name="start", pooler="avg", keep_layers=layers)
        trained_on = dataclasses.replace(run, config=dataclasses.replace(run.config, model=start))
        assert f"evaluate {flag}{judge}" in "\n".join(conclude(trained_on, outcome, tmp_path / "run"))
    # Another part would be other training data.
    with pytest.raises(UserError, match="training data"):
        prepare_small(tmp_path / "run", tmp_path / "cache", **flags | {"eval__data": "heldout:13"})
    prepare_small(tmp_path / "run", tmp_path / "cache", **flags)


def test_held_out_pairs_and_lines(tmp_path: Path) -> None:
    """Rows that hold such a text in any column are not trained on."""
    rows = demo.triplets(count=60, seed=3)
    others = [(f"One {n}.", f"Two {n}.", b) for n, (_, b, _) in enumerate(rows)]
    table = tmp_path / "rows.jsonl"
    names = ("sent0", "sent1", "hard_neg")
    table.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in [*rows, *others]))
    flags: dict[str, Any] = {"data__files": str(table), "data__positive": "columns", "eval__data": "heldout:10"}
    run = prepare_small(tmp_path / "run", tmp_path / "cache", **flags)
    task = read_folder("", tmp_path / "run" / "heldout")
    held = text_hashes([*task.queries.values(), *task.documents.values()])
    assert not np.isin(run.corpus.hashes, held).any()
    assert 60 <= len(run.corpus) <= 110
    found = {(task.queries[q], task.documents[d]) for q, own in task.relevant.items() for d in own}
    assert len(found) == 10
    assert found <= {(a, b) for a, b, _ in [*rows, *others]}
    assert set(task.documents.values()) == {t for a, b, c in [*rows, *others] if (a, b) in found for t in (b, c)}
    lines = prepare_small(tmp_path / "lines", tmp_path / "cache", eval__data="heldout:50")
    task = read_folder("", tmp_path / "lines" / "heldout")
    assert len(lines.corpus) <= 550
    for query, text in task.queries.items():
        [document] = task.relevant[query]
        assert f"{text} {task.documents[document]}" in demo.sentences(count=600)
