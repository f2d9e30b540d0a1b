"""Small models of our own making, as a user has them: an exported folder, and a run folder."""

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


def export_small(folder: Path, seed: int = 0, pooler: str = "avg") -> Path:
    """A folder with a model of random weights that know the demo's words; returns folder / "model"."""
    train_wordpiece(demo.sentences(count=500), VOCABULARY, folder / "tokenizer")
    config = Architecture("bert", VOCABULARY, 32, 2, 4, 48, max_position_embeddings=64, initializer_range=0.3)
    params = jax.jit(lambda: init_params(Encoder(config, has_head=True), seed))()
    export_model(folder / "model", params, config, folder / "tokenizer", pooler, card={})
    return folder / "model"


def train_small(workdir: Path, cache: Path, profile: bool = False, **changes: Any) -> Path:
    """A finished run of a few steps on the demo's sentences; changes: keys of the recipe, "__" for ".". Its folder."""
    train(prepare_small(workdir, cache, **changes), workdir, profile)
    return workdir


def prepare_small(workdir: Path, cache: Path, **changes: Any) -> Run:
    """The run that `train_small` trains."""
    recipe = base.get_config()
    values: dict[str, Any] = {
        **SMALL_ENCODER,
        "model.vocab_size": VOCABULARY,
        "model.pooler": "avg",
        "model.train_pooler": "avg",
        "data.files": "demo:sentences",
        "data.cache_dir": str(cache),
        "train.batch_size": 16,
        "train.epochs": 0.0,
        "train.steps": 4,
        "train.log_every_steps": 1,
        "optimizer.learning_rate": 1e-2,
        "eval.data": "demo:dev",
        "eval.every_steps": 2,
        "mesh.data": 1,
    }
    recipe.update_from_flattened_dict(values | {key.replace("__", "."): value for key, value in changes.items()})
    return prepare(resolve(recipe, (), jax.device_count()), workdir)
