"""A run on several sources: what it logs, that it resumes anywhere with the same numbers, and what it refuses."""

import csv
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from simcse_jax.data import demo
from simcse_jax.data.mixture import Turns
from simcse_jax.embedding_model import open_model
from simcse_jax.evaluation.graded_pairs import load_graded_pairs
from simcse_jax.evaluation.sts import evaluate_pairs
from simcse_jax.model_folder.run_folder import read_run_info
from simcse_jax.runs.metrics import read_metrics
from simcse_jax.system.errors import UserError
from simcse_jax.training.checkpoint import RunProgress
from simcse_jax.training.display import conclude, describe
from simcse_jax.training.loop import Outcome, train
from simcse_jax.training.run import Run
from tests.small_models import demo_files, prepare_small, states_of

# One with which the first step of two sources of equal shares is of the first, and the second of the other.
SEED = next(seed for seed in range(99) if Turns([1, 1], seed)(0, 2)[0].tolist() == [0, 1])


def sources() -> dict[str, dict[str, Any]]:
    """Return text, pairs and triplets of the demo."""
    triplets = str(demo_files() / "triplets.csv")
    return {
        "text": {"files": str(demo_files() / "sentences.txt"), "weight": 2.0},
        "pairs": {"files": triplets, "columns": "sent0,sent1", "positive": "columns", "prompts": "ask: ,tell: "},
        "triplets": {"files": triplets, "positive": "columns"},
    }


def prepared(folder: Path, name: str = "run", own: dict[str, dict[str, Any]] | None = None, **changes: Any) -> Run:
    """Return a run on the sources, with keys of their own, in one shape."""
    given = {source: keys | (own or {}).get(source, {}) for source, keys in sources().items()}
    keys: dict[str, Any] = {"data__files": "", "data__packed": False, "train__steps": 8, "eval__data": ""}
    return prepare_small(folder / name, folder / "cache", given, **keys | changes)


def numbers(workdir: Path) -> list[dict[str, float]]:
    timed = ("sentences_per_s", "data_wait_s")
    return [{name: value for name, value in line.items() if name not in timed} for line in read_metrics(workdir)]


@pytest.mark.medium
def test_a_killed_mixture_goes_on_with_the_same_numbers_on_other_devices(tmp_path: Path) -> None:
    flags: dict[str, Any] = {"checkpoint__every_steps": 3, "train__log_every_steps": 4, "train__steps": 12}
    flags["optimizer__learning_rate"] = 1e-3
    whole = prepared(tmp_path, "whole", **flags)
    train(whole, tmp_path / "whole")
    part = prepared(tmp_path, "part", **flags)

    def killed(step: int) -> None:
        if step == 7:  # after the checkpoint of step 6, with losses that no line has yet
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(_stopping(part, killed), tmp_path / "part")
    resumed = prepared(tmp_path, "part", mesh__data=4, **flags)
    assert train(resumed, tmp_path / "part").first_step == 6
    for one, other in zip(numbers(tmp_path / "whole"), numbers(tmp_path / "part"), strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-4, atol=1e-6)
    logged = numbers(tmp_path / "whole")
    order = whole.batches.order
    for line in logged:
        steps = range(int(line["step"]) - 4, int(line["step"]))
        assert {name for name in line if "/" in name} == {f"loss/{order.source(step)}" for step in steps}
    info = read_run_info(tmp_path / "whole")
    assert info is not None
    assert info["data"]["examples"] == 1200
    assert info["recipe"]["data.sources.text.weight"] == 2.0
    texts = open_model(str(tmp_path / "whole")).texts
    assert texts.prompts == {"pairs": "ask: ", "pairs_document": "tell: "}
    assert texts.prompt == ""


def _stopping(run: Run, at: Any) -> Run:
    """Return the run, whose batches call `at` with their step before they are made."""
    made = run.batches.order

    class Stopping:
        steps_per_epoch, dropped, source = made.steps_per_epoch, made.dropped, staticmethod(made.source)

        def ids(self, step: int) -> np.ndarray:
            at(step)
            return made.ids(step)

    run.batches.order = Stopping()
    return run


@pytest.mark.medium
def test_devices_change_no_number_of_mixed_batches(tmp_path: Path) -> None:
    """With prompts that are not pooled, single texts beside triplets, and dropout on."""
    shared: dict[str, Any] = {"data__mixing": "example", "data__include_prompt": False}
    one = prepared(tmp_path, "one", **shared)
    other = prepared(tmp_path, "other", mesh__data=4, **shared)
    found, expected = (states_of(run, 3)[1] for run in (other, one))
    for step, metrics in enumerate(found):
        np.testing.assert_allclose(list(metrics.values()), list(expected[step].values()), rtol=1e-3, atol=1e-4)


def test_of_few_dev_pairs_of_a_source_it_is_said(tmp_path: Path) -> None:
    few = tmp_path / "few.tsv"
    few.write_text("".join(f"{n * 7 % 5}\ta man plays {n}\ta dog runs {n}\n" for n in range(5)), encoding="utf-8")
    run = prepared(tmp_path, own={"text": {"dev": str(few)}})
    notes = [line for line in describe(run) if "only 5 pairs" in line]
    assert notes == [f"note: data.sources.text.dev = {str(few)!r}: {notes[0].partition(': ')[2].partition(': ')[2]}"]


def test_the_end_says_how_to_judge_on_the_dev_data_of_sources(tmp_path: Path) -> None:
    task = f"text:{demo_files() / 'sentences.txt'}"
    run = prepared(tmp_path, own={"text": {"dev": task}, "pairs": {"dev": "text:unread.txt", "weight": 0.0}})
    said = conclude(run, Outcome(0, 4, RunProgress(2, 50.0), None, 1), tmp_path / "run")
    (judge,) = [line for line in said if "judge it" in line]
    assert judge.endswith(f"--model={tmp_path / 'run'} --text={demo_files() / 'sentences.txt'}")
    run = prepared(tmp_path, "other", own={"pairs": {"dev": task}, "text": {"dev": task, "prompts": ""}})
    said = conclude(run, Outcome(0, 4, RunProgress(2, 50.0), None, 1), tmp_path / "run")
    assert sum(line.endswith(f"--prompt_name=pairs --{task.replace(':', '=')}") for line in said) == 1


@pytest.mark.medium
def test_dev_data_of_sources_are_scored_with_their_prompts_and_their_mean_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev = str(demo_files() / "dev.tsv")
    own = {"text": {"dev": dev}, "pairs": {"dev": dev}}
    run = prepared(tmp_path, own=own, eval__data=dev, eval__every_steps=1, train__steps=3, optimizer__learning_rate=0.1)
    outcome = train(run, tmp_path / "run")
    told = capsys.readouterr().out
    lines = [line for line in read_metrics(tmp_path / "run") if "dev/mean" in line]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert next(name for name in lines[0] if name != "step") == "dev/mean"
    for line in lines:
        assert line["dev/text/spearman"] == line["dev/spearman"] != line["dev/pairs/spearman"]
        each = [line["dev/spearman"], line["dev/text/spearman"], line["dev/pairs/spearman"]]
        assert line["dev/mean"] == pytest.approx(np.mean(each), abs=1e-3)
        shown = ", ".join(
            f"{name} {line[f'dev/{name}']:.2f}" for name in ("spearman", "pairs/spearman", "text/spearman")
        )
        assert f"dev mean  {line['dev/mean']:5.2f}  ({shown})" in told
    assert outcome.progress.best_step == max(lines, key=lambda line: line["dev/mean"])["step"]
    model = open_model(str(tmp_path / "run"))
    judged = evaluate_pairs(lambda texts: model.encode(texts, prompt="ask: "), load_graded_pairs(dev))
    best = next(line for line in lines if line["step"] == outcome.progress.best_step)
    assert judged["spearman"] == pytest.approx(best["dev/pairs/spearman"], abs=1e-2)
    alone = prepared(tmp_path, "alone", {"pairs": {"dev": dev}}, eval__data="")
    assert alone.dev is not None
    assert alone.dev.measure.name == "mean"


@pytest.mark.medium
def test_a_source_is_trained_with_its_own_loss(tmp_path: Path) -> None:
    """The first batch is one of graded pairs, and has the loss that a run on them alone begins with."""
    graded = tmp_path / "graded.csv"
    with graded.open("w", newline="") as file:
        csv.writer(file).writerows([("score", "a", "b"), *demo.graded_pairs()[:64]])
    own: dict[str, Any] = {"files": str(graded), "columns": "a,b", "scores": "score", "positive": "columns"}
    flags: dict[str, Any] = {"data__files": "", "data__packed": False, "eval__data": "", "train__seed": SEED}
    mixed: dict[str, dict[str, Any]] = {
        "a": own | {"loss": "cosent"},
        "b": {"files": str(demo_files() / "sentences.txt")},
    }
    run = prepare_small(tmp_path / "run", tmp_path / "cache", mixed, **flags)
    assert [run.loss_of(step) for step in range(2)] == ["cosent", ""]
    assert "positives: columns, loss: cosent" in "\n".join(describe(run))
    train(run, tmp_path / "run")
    first, second, *_ = numbers(tmp_path / "run")
    assert {"ordered", "loss/a"} <= first.keys() - {"accuracy"}
    assert {"accuracy", "loss/b"} <= second.keys() - {"ordered"}
    alone: dict[str, Any] = {f"data__{key}": value for key, value in own.items()} | {"objective__loss": "cosent"}
    alone |= {"model__tokenizer": str(tmp_path / "run" / "tokenizer"), "model__vocab_size": 0}
    plain = prepare_small(tmp_path / "plain", tmp_path / "cache", **flags | alone)
    assert first["loss"] == pytest.approx(states_of(plain, 1)[1][0]["loss"], rel=1e-5)
    for changes, message in (
        ({"objective__learned_temperature": True}, "learned_temperature = True is kept from step to step"),
        ({"data__mixing": "example"}, "data.sources.a.loss = 'cosent' and objective.loss = 'info_nce' are of whole"),
        ({"objective__loss": "triplet"}, "objective.loss = 'triplet' has no effect: every source has its own"),
    ):
        named = mixed | {"b": mixed["b"] | ({"loss": "info_nce"} if "objective__loss" in changes else {})}
        with pytest.raises(UserError, match=message):
            prepare_small(tmp_path / "refused", tmp_path / "cache", named, **flags | changes)
    unscored = mixed | {"a": mixed["a"] | {"scores": ""}}
    with pytest.raises(UserError, match=r"data\.sources\.a\.scores = '': must be a column"):
        prepare_small(tmp_path / "refused", tmp_path / "cache", unscored, **flags)


def test_a_mixture_says_what_it_reads(tmp_path: Path) -> None:
    run = prepared(tmp_path, train__steps=100)
    said = "\n".join(describe(run))
    for words in ("source text: 50.0% of batches", "source pairs: 25.0% of batches, 1.3 passes over its 300 examples"):
        assert words in said
    assert "100, 1.33 epochs of 75" in said
    assert said.count("prompts: 'ask: ' before sent0, 'tell: ' before sent1") == said.count("prompts: ") == 1
    longer = prepared(tmp_path, "longer", train__steps=1000)
    assert "source pairs: 25.0% of batches, 13 passes over" in "\n".join(describe(longer))
    assert run.batches.sentences == 16 * 2.25
    even = prepared(tmp_path, "even", data__mixing_temperature=1.0)
    assert "source text: 66.7% of batches" in "\n".join(describe(even))
    left_out = prepared(tmp_path, "left-out", {"text": {"weight": 0.0}})
    assert [*left_out.corpora] == ["pairs", "triplets"]


def test_sources_that_are_all_encoded_twice_stay_so(tmp_path: Path) -> None:
    """Nothing is spent on a copy of each text."""
    text = {"files": str(demo_files() / "sentences.txt")}
    mixed = prepare_small(tmp_path / "mixed", tmp_path / "cache", {"a": text}, data__files="", eval__data="")
    plain = prepare_small(tmp_path / "plain", tmp_path / "cache", eval__data="")
    assert mixed.batches.examples.texts == 1
    for one, other in zip(jax.tree.leaves(mixed.batches(3)), jax.tree.leaves(plain.batches(3)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"pairs": {"columns": "sent0,answer"}}, "(?s)has no column 'answer'.*about --config.data.sources.pairs.files"),
        ({"triplets": {"positive": "dropout"}}, "data.sources.triplets.positive = 'dropout' takes one text column"),
        ({"text": {"positive": "columns"}}, "(?s)two or more text columns.*data.sources.text.positive=dropout"),
        ({"text": {"prompts": "a: ,b: "}}, "data.sources.text.prompts has 2 prompts"),
        ({"text": {"files": "/nowhere.txt"}}, "(?s)/nowhere.txt.*--config.data.sources.text.files"),
        ({"text": {"files": ""}}, "data.sources.text.files.*data.sources.text.weight=0"),
        ({"text": {"weight": -1.0}}, "data.sources.text.weight = -1.0: must be at least 0"),
        ({name: {"weight": 0.0} for name in sources()}, "weights of all sources are 0"),
        (
            {"text": {"rate": 0.2}},
            "data.sources.text.rate is no key of a source.\nKeys of a source: weight, dev, loss, files,",
        ),
        ({"text": {"dev": "/no/dev.tsv"}}, "(?s)/no/dev.tsv.*--config.data.sources.text.dev"),
        ({"text": {"dev": "heldout:9"}}, "data.sources.text.dev = 'heldout:9'"),
        ({"text": {"positive": "mask"}}, "data.sources.text.positive = 'mask' is not for mixtures"),
        ({"text": {"positive": "crop", "prompts": "a: "}}, "data.sources.text.prompts = 'a: ' has no effect with"),
    ],
)
def test_bad_sources_are_refused_by_their_name(own: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, own=own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__batch_size": 304}, "(?s)source 'pairs', which has only 300.*batch_size=256.*data.mixing=example"),
        ({"data__files": "x.txt"}, "data.files = 'x.txt' has no effect: every source has its own"),
        ({"data__rate": 0.2}, "data.rate = 0.2 has no effect with data.sources.pairs.positive = 'columns'"),
        ({"model__same_mask": True}, "data.sources.pairs.positive = 'columns' are not"),
        ({"eval__data": "heldout:10"}, "'heldout:10' holds out a part of data.files, and this run has several sources"),
    ],
)
def test_keys_that_do_not_go_with_sources_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, **changes)


@pytest.mark.medium
def test_a_mixture_resumes_with_its_files_elsewhere_and_nothing_else_changed(tmp_path: Path) -> None:
    train(prepared(tmp_path, train__steps=2, checkpoint__every_steps=1), tmp_path / "run")
    moved = tmp_path / "moved.txt"
    moved.write_text((demo_files() / "sentences.txt").read_text())
    again: dict[str, Any] = {"train__steps": 2, "checkpoint__every_steps": 1}
    prepared(tmp_path, own={"text": {"files": str(moved)}}, **again)
    for own, message in (
        ({"text": {"weight": 3.0}}, "data.sources.text.weight: 2.0 there, 3.0 now"),
        ({"pairs": {"prompts": "ask: "}}, "data.sources.pairs.prompts: 'ask: ,tell: ' there, 'ask: ' now"),
        ({"text": {"positive": "crop"}}, "data.sources.text.positive: 'dropout' there, 'crop' now"),
    ):
        with pytest.raises(UserError, match=message):
            prepared(tmp_path, own=own, **again)
    moved.write_text(moved.read_text() + "one more\n")
    with pytest.raises(UserError, match="training data"):
        prepared(tmp_path, own={"text": {"files": str(moved)}}, **again)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]
    assert stored["data.sources.pairs.columns"] == "sent0,sent1"
