"""Small models of our own making, as a user has them: an exported folder, and a run folder."""

import atexit
import csv
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax

from configs import base
from simcse_jax.config.resolve import resolve
from simcse_jax.data import demo
from simcse_jax.data.tokenizer import train_wordpiece
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.init import init_params
from simcse_jax.encoder.model import Encoder
from simcse_jax.model_folder.export import export_model
from simcse_jax.training.loop import train
from simcse_jax.training.run import Run, prepare

VOCABULARY = 400
# Keys of a recipe for the smallest encoder that trains: random weights, a tokenizer of its own.
SMALL_ENCODER = {
    "model.name": "",
    "model.init": "random",
    "model.num_hidden_layers": 1,
    "model.hidden_size": 16,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 32,
    "model.tokenizer": "train",
}
# Changes for a recipe that starts from a folder, where `train_small` starts from random weights.
FROM_FOLDER: dict[str, Any] = {
    "model__init": "pretrained",
    "model__num_hidden_layers": 0,
    "model__hidden_size": 0,
    "model__num_attention_heads": 0,
    "model__intermediate_size": 0,
    "model__tokenizer": "",
    "model__vocab_size": 0,
}

# The same for a run that trains adapters and a head, and keeps each of its three states.
LORA: dict[str, Any] = FROM_FOLDER | {
    "model__lora": 2,
    "model__pooler": "cls",
    "model__train_pooler": "cls",
    "train__steps": 3,
    "checkpoint__keep_every_steps": 1,
    "data__packed": False,
    "eval__data": "",  # the last state is the one that counts
}


@functools.cache
def demo_files() -> Path:
    """Return a folder with a little of the demo's text, sentences.txt, triplets.csv and dev.tsv, for reading only."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "sentences.txt").write_text("\n".join(demo.sentences(count=600)) + "\n")
    with (folder / "triplets.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("sent0", "sent1", "hard_neg"), *demo.triplets(count=300)])
    pairs = ["\t".join(map(str, pair)) for pair in demo.graded_pairs()[:100]]
    (folder / "dev.tsv").write_text("\n".join(pairs) + "\n")
    return folder


def export_small(folder: Path, seed: int = 0, pooler: str = "avg") -> Path:
    """Write a model of random weights that knows the demo's words; return folder / "model"."""
    train_wordpiece(demo.sentences(count=500), VOCABULARY, folder / "tokenizer")
    config = Architecture("bert", VOCABULARY, 32, 2, 4, 48, max_position_embeddings=64, initializer_range=0.3)
    params = jax.jit(lambda: init_params(Encoder(config, has_head=True), seed))()
    export_model(folder / "model", params, config, folder / "tokenizer", pooler, card={})
    return folder / "model"


def train_small(workdir: Path, cache: Path, profile: bool = False, **changes: Any) -> Path:
    """Train a few steps on some of the demo's sentences; return the run folder.

    changes: keys of the recipe, "__" for ".".
    """
    train(prepare_small(workdir, cache, **changes), workdir, profile)
    return workdir


def prepare_small(workdir: Path, cache: Path, sources: Any = None, **changes: Any) -> Run:
    """Return the run that `train_small` trains; sources: of a mixture, what `add_source` takes of each."""
    recipe = small_recipe(sources, data__cache_dir=str(cache), **changes)
    return prepare(resolve(recipe, (), jax.device_count()), workdir)


def small_recipe(sources: Any = None, **changes: Any) -> Any:
    """Return the recipe of `train_small`."""
    recipe = base.get_config()
    for name, keys in (sources or {}).items():
        base.add_source(recipe, name, **keys)
    values: dict[str, Any] = {
        **SMALL_ENCODER,
        "model.vocab_size": VOCABULARY,
        "model.pooler": "avg",
        "model.train_pooler": "avg",
        "data.files": str(demo_files() / "sentences.txt"),
        "train.batch_size": 16,
        "train.epochs": 0.0,
        "train.steps": 4,
        "train.log_every_steps": 1,
        "optimizer.learning_rate": 1e-2,
        "eval.data": str(demo_files() / "dev.tsv"),
        "eval.every_steps": 2,
        "mesh.data": 1,
    }
    recipe.update_from_flattened_dict(values | {key.replace("__", "."): value for key, value in changes.items()})
    return recipe


def states_of(run: Run, steps: int) -> tuple[list[Any], list[dict[str, float]]]:
    """Return the states of a run from the start on, and the metrics of each step; write nothing."""
    state, states, metrics = run.initial_state(), [], []
    states.append(jax.device_get(state))  # a step donates the state that it is given
    for step in range(steps):
        state, found = run.program.train_step(state, run.batches(step), *run.frozen)
        states.append(jax.device_get(state))
        metrics.append({name: float(value) for name, value in found.items()})
    return states, metrics
