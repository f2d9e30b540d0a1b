"""What a recipe may try beside plain SimCSE: positives, dropout, second encoders, losses."""

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from simcse_jax.data import demo
from simcse_jax.data.vocabulary import Vocabulary, vocabulary_of
from simcse_jax.embedding_model import open_model
from simcse_jax.model_folder.run_folder import export_run, load_run_params, read_state
from simcse_jax.runs.metrics import read_metrics
from simcse_jax.system.errors import UserError
from simcse_jax.training.display import describe
from simcse_jax.training.loop import train
from simcse_jax.training.program import make_encode
from simcse_jax.training.run import Run
from simcse_jax.training.state import PREDICTOR, encoder_params
from tests.small_models import FROM_FOLDER, VOCABULARY, demo_files, export_small, prepare_small, states_of, train_small

# One shape to compile, and no evaluation.
QUICK: dict[str, Any] = {"data__packed": False, "eval__data": ""}
TRIPLETS: dict[str, Any] = {"data__files": "triplets.csv", "data__positive": "columns"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the demo's sentences in documents of five."""
    path = tmp_path_factory.mktemp("text") / "documents.txt"
    texts = (demo_files() / "sentences.txt").read_text().splitlines()[:400]
    path.write_text("\n\n".join("\n".join(texts[n : n + 5]) for n in range(0, 400, 5)) + "\n")
    return path


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Make a model folder with a head of masked language modelling."""
    folder = tmp_path_factory.mktemp("predictor")
    flags: dict[str, Any] = {"objective__loss": "none", "mlm__weight": 1.0, "train__steps": 20}
    export_run(train_small(folder / "run", cache, **QUICK | flags), folder / "model")
    return folder / "model"


def prepare_quick(workdir: Path, cache: Path, **flags: Any) -> Run:
    if (files := flags.get("data__files")) and not Path(files).is_absolute():
        flags["data__files"] = str(demo_files() / files)
    return prepare_small(workdir, cache, **QUICK | flags)


def metrics_of(workdir: Path, cache: Path, steps: int = 1, **flags: Any) -> list[dict[str, float]]:
    return states_of(prepare_quick(workdir, cache, **flags), steps)[1]


POSITIVES = ["next_sentence", "crop", "word_deletion", "synonym", "repetition"]
DIFFERENT: list[dict[str, Any]] = [
    *({"data__positive": name, "model__dropout": 0.0} for name in POSITIVES),
    *(
        {"model__cutoff": name, "model__cutoff_rate": 0.3, "model__dropout": 0.0}
        for name in ("token", "feature", "span")
    ),
    {"model__dropout": 0.1},
]
# The paper's study: with the same mask, or none, a positive is its anchor.
EQUAL: list[dict[str, Any]] = [{"model__same_mask": True, "model__dropout": dropout} for dropout in (0.1, 0.0)]


@pytest.mark.medium
@pytest.mark.parametrize("flags", [*DIFFERENT, *EQUAL], ids=lambda flags: "-".join(map(str, flags.values())))
def test_what_tells_the_two_views_apart(flags: dict[str, Any], documents: Path, cache: Path, tmp_path: Path) -> None:
    extra: dict[str, Any] = {"data__files": str(documents)}
    if flags.get("data__positive") not in (None, "next_sentence"):
        extra["data__rate"] = 0.3
    (found,) = metrics_of(tmp_path / "run", cache, **flags, **extra)
    assert np.isfinite(found["loss"])
    if flags in EQUAL:
        assert found["positive_cosine"] == pytest.approx(1, abs=1e-6)
    else:
        assert found["positive_cosine"] < 0.9999


@pytest.mark.medium
def test_positives_of_a_predictor(predictor: Path, cache: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = FROM_FOLDER | {
        "model__name": str(predictor),
        "data__positive": "mask",
        "model__dropout": 0.0,
    }
    (few,) = metrics_of(tmp_path / "few", cache, data__rate=0.1, **flags)
    (more,) = metrics_of(tmp_path / "more", cache, data__rate=0.6, **flags)
    assert 0.9999 > few["positive_cosine"] > more["positive_cosine"]
    named: dict[str, Any] = flags | {"data__mask_model": str(predictor)}
    assert metrics_of(tmp_path / "named", cache, data__rate=0.1, **named) == [few]


@pytest.mark.medium
def test_the_named_model_predicts_and_stays_as_it_is(predictor: Path, cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"  # of the same tokenizer, and guesses something else
    shutil.copytree(predictor, other)
    tensors = load_file(other / "model.safetensors")
    tensors["cls.predictions.bias"] = tensors["cls.predictions.bias"][::-1] * 100
    save_file(tensors, other / "model.safetensors")
    flags: dict[str, Any] = FROM_FOLDER | {"model__name": str(predictor), "data__positive": "mask", "data__rate": 0.4}
    run = prepare_quick(tmp_path / "own", cache, **flags)
    named = prepare_quick(tmp_path / "named", cache, **flags, data__mask_model=str(other))
    (first, *_, last), metrics = states_of(run, 2)
    (named_first, *_, named_last), named_metrics = states_of(named, 2)
    jax.tree.map(np.testing.assert_array_equal, first.params, named_first.params)
    np.testing.assert_array_equal(named_first.extra[PREDICTOR]["mlm"]["bias"], tensors["cls.predictions.bias"])
    assert all(abs(a["loss"] - b["loss"]) > 1e-4 for a, b in zip(metrics, named_metrics, strict=True))
    for before, after in ((first, last), (named_first, named_last)):
        jax.tree.map(np.testing.assert_array_equal, before.extra[PREDICTOR], after.extra[PREDICTOR])
    # At a later step too it is the predictor that predicts, not the encoder as it has become.
    mixed = last._replace(extra=named_last.extra)
    shardings = run.program.shardings
    one, two = (
        float(run.program.train_step(jax.device_put(state, shardings), run.batches(2))[1]["loss"])
        for state in (last, mixed)
    )
    assert abs(one - two) > 1e-4


def test_a_predictor_of_other_words_is_refused(predictor: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.mask_model(.|\n)*tokenizer"):
        prepare_quick(
            tmp_path / "run",
            cache,
            data__positive="mask",
            data__mask_model=str(predictor),
            model__vocab_size=VOCABULARY - 50,
        )
    headless = export_small(tmp_path)
    flags: dict[str, Any] = FROM_FOLDER | {"model__name": str(headless), "data__positive": "mask"}
    with pytest.raises(UserError, match="masked-language-model head"):
        prepare_quick(tmp_path / "other", cache, **flags)


LOSSES: list[dict[str, Any]] = [
    {"objective__loss": "triplet"},
    {"objective__loss": "margin_ranking", "objective__similarity": "dot"},
    {"objective__loss": "sigmoid", "objective__learned_temperature": True, "objective__learning_rate": 0.02},
    {"objective__learned_temperature": True, "objective__widths": "16,4"},
]


@pytest.mark.medium
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: "-".join(str(value) for value in loss.values()))
def test_every_loss_trains(loss: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    found = metrics_of(tmp_path / "run", cache, 2, **loss)
    assert all(np.isfinite(line["loss"]) for line in found)
    assert ("temperature" in found[0]) == ("objective__learned_temperature" in loss)
    if "temperature" in found[0]:  # Adam's first step is the rate itself, of the logarithm for the temperature
        rate = loss.get("objective__learning_rate", 1e-2)  # else the one of small runs
        moved = abs(np.log(found[1]["temperature"] / found[0]["temperature"]))
        assert moved == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            {"objective__hard_negative_weight": 2.0},
            r"hard_negative_weight = 2.0(.|\n)*hard_negative_weight=1",
        ),
        ({"objective__widths": "32,8"}, r"--config\.objective\.widths=16,8"),  # of embeddings with 16 features
        ({"objective__widths": "8,4"}, r"objective\.widths"),
    ],
)
def test_what_data_or_model_do_not_have_is_refused(
    flags: dict[str, Any], says: str, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        prepare_quick(tmp_path / "run", cache, **flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"model__second_encoder": "copy", **TRIPLETS},
        {"model__second_encoder": "momentum", **TRIPLETS},
        {"model__second_encoder": "copy", "data__positive": "word_deletion"},
        {"model__second_encoder": "momentum"},
    ],
    ids=lambda flags: "-".join(flags.values()),
)
def test_the_first_encoder_reads_anchors_and_the_second_all_else(
    flags: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    """Each as if it were the only one: the same texts, dropout included."""
    run = prepare_quick(tmp_path / "two", cache, **flags)
    alone = prepare_quick(tmp_path / "one", cache, **flags | {"model__second_encoder": "none"})
    first, other = (
        encoder_params(prepare_quick(tmp_path / str(seed), cache, train__seed=seed, **flags).initial_state().params)
        for seed in (1, 2)
    )
    second = {name: tree for name, tree in other.items() if name != "mlm"}
    encode, single = (jax.jit(make_encode(r.config, r.encoder, r.program.mesh)) for r in (run, alone))
    views = 2 if run.batches.examples.texts == 1 else 1
    keys = jnp.arange(2 * views, dtype=jnp.uint32).reshape(views, 2)
    both = encode(first | {"second": second}, run.batches(1), keys).z
    of_first, of_second = (single(params, alone.batches(1), keys).z for params in (first, second))
    assert both is not None
    assert of_first is not None
    assert of_second is not None
    np.testing.assert_allclose(both[0], of_first[0], atol=2e-6)
    np.testing.assert_allclose(both[1:], of_second[1:], atol=2e-6)
    assert np.abs(of_first - of_second).max() > 1e-2


@pytest.mark.parametrize("noise", ["dropout", "token", "feature", "span"])
def test_noise_is_a_function_of_seed_and_step(noise: str, cache: Path, tmp_path: Path) -> None:
    flags = {} if noise == "dropout" else {"model__dropout": 0.0, "model__cutoff": noise}
    run = prepare_quick(tmp_path / "run", cache, **flags)
    other = prepare_quick(tmp_path / "other", cache, train__seed=5, **flags)
    key = other.initial_state().key

    def loss(**changes: Any) -> float:
        return float(run.program.train_step(run.initial_state()._replace(**changes), run.batches(1))[1]["loss"])

    step = jnp.asarray(1, jnp.int32)
    one, again, next_step, next_seed = loss(), loss(), loss(step=step), loss(key=key)
    assert one == again
    assert len({round(value, 5) for value in (one, next_step, next_seed)}) == 3


@pytest.mark.parametrize(
    ("flags", "instead"),
    [({"mlm__weight": 0.1}, "mlm.weight=0"), ({"data__positive": "mask"}, "data.positive=dropout")],
)
def test_without_a_mask_token_nothing_is_masked(
    flags: dict[str, Any],
    instead: str,
    predictor: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without(tokenizer: Any) -> Vocabulary:
        return dataclasses.replace(vocabulary_of(tokenizer), mask_id=None)

    monkeypatch.setattr("simcse_jax.training.feeding.vocabulary_of", without)
    with pytest.raises(UserError, match=f"mask token(.|\n)*--config.{instead}"):
        prepare_quick(tmp_path / "run", cache, **FROM_FOLDER, model__name=str(predictor), **flags)


def test_a_copy_has_a_life_of_its_own(cache: Path, tmp_path: Path) -> None:
    run = prepare_quick(tmp_path / "run", cache, model__second_encoder="copy", **TRIPLETS)
    first, *_, last = (state.params for state in states_of(run, 2)[0])
    own = {name: tree for name, tree in first.items() if name != "second"}
    jax.tree.map(np.testing.assert_array_equal, own, first["second"])
    both = jax.tree.leaves(encoder_params(last)), jax.tree.leaves(last["second"]), jax.tree.leaves(own)
    for one, two, before in zip(*both, strict=True):
        assert not np.array_equal(one, before)
        assert not np.array_equal(two, before)
        assert not np.array_equal(one, two)


def test_a_momentum_encoder_follows_and_fills_the_queue(cache: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"model__second_encoder": "momentum", "model__momentum": 0.75, "objective__queue": 40}
    states, _ = states_of(prepare_quick(tmp_path / "run", cache, **flags), 3)
    for before, after in itertools.pairwise(states):
        jax.tree.map(
            lambda held, old, new: np.testing.assert_allclose(held, 0.75 * old + 0.25 * new, atol=1e-6),
            after.extra["second"],
            before.extra["second"],
            after.params,
        )
    assert [int(state.extra["queue"].filled) for state in states] == [0, 16, 32, 40]
    queues = [state.extra["queue"].z for state in states]
    np.testing.assert_array_equal(queues[3][16:32], queues[2][:16])
    np.testing.assert_array_equal(queues[3][32:], queues[2][16:24])
    assert np.abs(queues[3][:16]).min(-1).max() > 0


def test_a_queue_knows_the_texts_of_earlier_batches(cache: Path, tmp_path: Path) -> None:
    """Sixteen texts and batches of sixteen: from the second step on, everybody's own text is in the queue."""
    (tmp_path / "text.txt").write_text("\n".join(demo.sentences(count=16)) + "\n")
    flags: dict[str, Any] = {"model__second_encoder": "momentum", "objective__queue": 16}
    found = metrics_of(tmp_path / "run", cache, 3, data__files=str(tmp_path / "text.txt"), **flags)
    assert [line["masked"] for line in found] == [0, 16, 16]


def test_other_synonyms_are_another_run(cache: Path, tmp_path: Path) -> None:
    """What the file says counts, and not where it lies."""
    (tmp_path / "one.txt").write_text("man, person\n")
    (tmp_path / "two.txt").write_text("man, person\n")
    flags: dict[str, Any] = QUICK | {"data__positive": "synonym", "train__steps": 2}
    train_small(tmp_path / "run", cache, data__synonyms=str(tmp_path / "one.txt"), **flags)
    prepare_small(tmp_path / "run", cache, data__synonyms=str(tmp_path / "two.txt"), **flags)
    (tmp_path / "two.txt").write_text("man, woman\n")
    with pytest.raises(UserError, match="synonyms"):
        prepare_small(tmp_path / "run", cache, data__synonyms=str(tmp_path / "two.txt"), **flags)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(
            {"model__second_encoder": "copy", "objective__learned_temperature": True}, id="copy", marks=pytest.mark.slow
        ),
        pytest.param({"model__second_encoder": "momentum", "objective__queue": 20}, id="momentum"),
        pytest.param(
            {"model__second_encoder": "copy", **TRIPLETS, "mlm__weight": 0.1, "train__groups_at_once": 1},
            id="triplets-mlm",
        ),
        pytest.param({"data__positive": "mask", "data__rate": 0.3}, id="predictor"),
        pytest.param({"objective__loss": "none", "mlm__weight": 1.0}, id="mlm", marks=pytest.mark.slow),
    ],
)
def test_runs_of_other_kinds_resume_bit_for_bit_and_export_the_encoder(
    flags: dict[str, Any], predictor: Path, cache: Path, tmp_path: Path
) -> None:
    if flags.get("data__positive") == "mask":
        flags = flags | FROM_FOLDER | {"model__name": str(predictor)}
    flags = flags | {"checkpoint__every_steps": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = prepare_quick(whole, cache, **flags)
    train(run, whole)
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "last" / "4")
    train(prepare_quick(parts, cache, **flags), parts)
    found = [[line["loss"] for line in read_metrics(workdir) if "loss" in line] for workdir in (whole, parts)]
    assert len(found[0]) == 4
    assert found[0] == found[1]
    like = run.program.shapes._asdict()
    ends = [read_state(workdir / "checkpoints" / "last" / "4", like)[0] for workdir in (whole, parts)]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    params, _ = load_run_params(whole)
    assert params.keys() == set(run.program.shapes.params) - {"second", "objective"}
    export_run(whole, tmp_path / "model")
    texts = list(demo.sentences(seed=3, count=5))
    run_model, exported = open_model(str(whole)), open_model(str(tmp_path / "model"))
    np.testing.assert_allclose(run_model.encode(texts), exported.encode(texts), atol=1e-6)
    assert any("model.second_encoder" in line for line in describe(run)) == ("model__second_encoder" in flags)


def test_a_run_says_that_a_temperature_will_hardly_be_learned(cache: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"objective__learned_temperature": True, "train__steps": 100}
    low = prepare_quick(tmp_path / "low", cache, **flags, optimizer__learning_rate=3e-5)
    assert any("temperature" in line for line in describe(low) if line.startswith("note"))
    own = prepare_quick(tmp_path / "own", cache, **flags, optimizer__learning_rate=3e-5, objective__learning_rate=1e-2)
    assert not any("temperature" in line for line in describe(own) if line.startswith("note"))
