"""Turn a recipe's model section into a tokenizer, an encoder and its first parameters."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simcse_jax.config.schema import Config, ModelConfig
from simcse_jax.data.positives import POSITIVES
from simcse_jax.data.tokenizer import load_tokenizer, train_wordpiece
from simcse_jax.data.vocabulary import id_count, vocabulary_of
from simcse_jax.encoder.adapted_params import HEADS, join_params, split_params
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.attention import choose_attention
from simcse_jax.encoder.families.table import read_architecture
from simcse_jax.encoder.init import init_params
from simcse_jax.encoder.lora import make_lora
from simcse_jax.encoder.mlm import Predictor
from simcse_jax.encoder.model import Encoder
from simcse_jax.encoder.products import resolve_products
from simcse_jax.model_folder.kept_layers import require_layers
from simcse_jax.model_folder.module_list import encoder_folder
from simcse_jax.model_folder.pretrained import load_params
from simcse_jax.model_folder.run_folder import START
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import model_folder
from simcse_jax.training.feeding import read_texts
from simcse_jax.training.warm_start import load_start

# Sentences that a tokenizer is trained on, at most, with model.tokenizer = "train".
TOKENIZER_SENTENCES = 1_000_000

# The encoder of model.init = "random" without a model.name, where the recipe gives no size.
BERT_BASE = Architecture("bert", 30522, 768, 12, 12, 3072)


def local_model(model: ModelConfig) -> Path | None:
    """Return the local folder of model.name's encoder, fetched if need be; None where no model is named."""
    folder = source_folder(model)
    return encoder_folder(folder, weights=model.init == "pretrained") if folder else None


def source_folder(model: ModelConfig) -> Path | None:
    """Return the local folder of all that model.name has, modules included; None where no model is named."""
    return model_folder(model.name, weights=model.init == "pretrained") if model.name else None


def write_tokenizer(config: Config, folder: Path | None, to: Path) -> None:
    """Write the run's tokenizer into the folder `to`; it is trained on the data if the recipe says so.

    folder: that of model.name.
    """
    model = config.model
    if model.tokenizer == "train":
        train_wordpiece(itertools.islice(read_texts(config), TOKENIZER_SENTENCES), model.vocab_size, to)
        return
    source = encoder_folder(model_folder(model.tokenizer, weights=False), weights=False) if model.tokenizer else folder
    assert source is not None  # `resolve` refuses a recipe with neither
    load_tokenizer(source).save_pretrained(to)


def make_encoder(config: Config, folder: Path | None, vocab_size: int, platform: str) -> Encoder:
    """Return the encoder module: its sizes are the model folder's, and the recipe's where weights are random.

    vocab_size: the tokenizer's. platform: of the devices, "cpu", "gpu" or "tpu". UserError when recipe, tokenizer and
    sizes do not fit together.
    """
    model = config.model
    sizes = read_architecture(folder) if folder else BERT_BASE
    if model.kept_layers:
        require_layers("model.keep_layers", "--config.model.keep_layers", model.kept_layers, sizes)
        sizes = sizes.with_layers(model.kept_layers)
    noise = {"dropout": model.dropout, "cutoff": model.cutoff, "cutoff_rate": model.cutoff_rate}
    sizes = dataclasses.replace(sizes, **noise)
    if model.init == "random":
        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
        given = {name: getattr(model, name) for name in names if getattr(model, name)}
        if model.tokenizer:
            given["vocab_size"] = vocab_size
        sizes = dataclasses.replace(sizes, **given)
    if sizes.hidden_size % sizes.num_attention_heads:
        raise UserError(
            f"model.hidden_size = {sizes.hidden_size} does not divide into {sizes.num_attention_heads} attention "
            f"heads.\nUse --config.model.num_attention_heads={max(sizes.hidden_size // 64, 1)}."
        )
    if vocab_size > sizes.vocab_size:
        raise UserError(
            f"The tokenizer has {vocab_size} tokens, and the model's vocabulary only {sizes.vocab_size}: they do not "
            "belong together.\nUse the tokenizer that came with the model (--config.model.tokenizer=)."
        )
    if config.data.max_length > sizes.max_length:
        raise UserError(
            f"data.max_length = {config.data.max_length}, but the model takes at most {sizes.max_length} tokens.\n"
            f"Use --config.data.max_length={sizes.max_length} or less."
        )
    widest = max(config.objective.matryoshka_widths, default=sizes.hidden_size)
    if widest != sizes.hidden_size:
        raise UserError(
            f"objective.widths = {config.objective.widths!r}, and embeddings have {sizes.hidden_size} features: that "
            "must be the largest, or some are used and never trained.\n"
            f"Use --config.objective.widths={sizes.hidden_size},{sizes.hidden_size // 2}, for example."
        )
    _require_last_layer(config, sizes)
    return encoder_of(config, sizes, platform)


def _require_last_layer(config: Config, sizes: Architecture) -> None:
    """Raise UserError where objective.layers leaves out the last layer, or layers before a norm at the end."""
    layers, count = config.objective.matryoshka_layers, sizes.num_hidden_layers
    if layers and layers[-1] != count:
        raise UserError(
            f"objective.layers = {config.objective.layers!r}, and the model has {count} layers: the last must be among "
            f"them.\nUse --config.objective.layers={max(count // 2, 1)},{count}, for example."
        )
    if layers and sizes.pre_norm:
        raise UserError(
            f"objective.layers = {config.objective.layers!r}: in models of this family a norm stands after the last "
            "layer alone, so the others' embeddings are not those of a model cut there.\nLeave it out: "
            "--config.objective.layers="
        )


def encoder_of(config: Config, sizes: Architecture, platform: str) -> Encoder:
    """Return the encoder module of these sizes, with the precision and layout that the recipe asks for."""
    model = config.model
    if model.lora > sizes.hidden_size:
        raise UserError(
            f"model.lora = {model.lora} is above the rank that the kernels of this encoder can have, its width "
            f"{sizes.hidden_size}.\nUse --config.model.lora=8, or another much smaller number."
        )
    return Encoder(
        sizes,
        jnp.dtype(model.dtype),
        jnp.float64 if model.dtype == "float64" else jnp.float32,
        resolve_products(model.products, model.dtype, platform, "model.products"),
        make_lora(sizes, model.lora, model.lora_alpha, model.lora_targets) if model.lora else None,
        has_head=model.has_head,
        has_mlm_head=config.mlm.weight > 0,
        attend=choose_attention(model.attention, sizes, model.dtype, platform),
        unroll=unrolls(config, platform),
        remat=model.remat,
    )


def unrolls(config: Config, platform: str) -> bool:
    """Return whether layers run as straight-line code on devices of this platform, "cpu", "gpu" or "tpu".

    With `remat` only where asked for: in straight-line code a CPU's scheduler recomputes all layers at once, which
    takes the memory that `remat` is to save; in a loop it recomputes one after another. With mesh.fsdp on GPUs as
    well: a loop gathers one layer after another, whatever the compiler.
    """
    model = config.model
    if model.unroll != "auto":
        return model.unroll == "on"
    return not model.remat and (platform == "cpu" or (platform == "gpu" and config.mesh.fsdp == 1))


def load_predictor(
    config: Config, encoder: Encoder, folder: Path | None, tokenizer: Any, resumes: bool = False
) -> tuple[Predictor | None, Callable[[], Any]]:
    """Return the masked language model that makes positives, None with other positives, and a loader.

    The loader returns the model's parameters, and is called at most once. The model computes as the run's encoder
    does. folder: that of model.name. UserError where the model has no head, or another tokenizer than the run.
    """
    if not POSITIVES[config.data.positive].predicted or config.objective.loss == "none":
        return None, lambda: None
    named = config.data.mask_model
    source = encoder_folder(model_folder(named)) if named else folder
    assert source is not None  # `resolve` refuses a recipe with neither
    if named and load_tokenizer(source).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"data.mask_model = {named!r} has another tokenizer than model.name = {config.model.name!r}: their token "
            "ids mean other words.\nLeave it out, or name a model with the same vocabulary."
        )
    sizes = dataclasses.replace(read_architecture(source), dropout=0.0)
    longest, tokens = min(sizes.max_length, encoder.architecture.max_length), id_count(tokenizer)
    if config.data.max_length > longest or sizes.vocab_size < tokens:
        raise UserError(
            f"data.mask_model = {str(source)!r} takes at most {sizes.max_length} tokens and knows {sizes.vocab_size} "
            f"of them; the run has data.max_length = {config.data.max_length} and {tokens} tokens.\n"
            f"Use --config.data.max_length={longest} or less, and a model with the run's vocabulary."
        )
    shared = encoder.dtype, encoder.param_dtype, encoder.products
    own = Encoder(sizes, *shared, has_mlm_head=True, unroll=encoder.unroll)

    load = functools.partial(_load, source, own, mlm_head=True)
    special = ~vocabulary_of(tokenizer).predictable
    special = np.pad(special, (0, max(sizes.vocab_size - len(special), 0)), constant_values=True)
    return Predictor(own, special), load if resumes else _loaded(load)


def first_params(
    config: Config, encoder: Encoder, folder: Path | None, tokenizer: Any, resumes: bool
) -> Callable[[], Any]:
    """Return a function that returns random, pretrained or another run's parameters; call it at most once.

    The parameters are on the host or on one of its devices, and equal on every process. Pretrained weights are read
    here, so that a folder without good ones is refused early; a run that resumes reads them only if its checkpoint is
    damaged. The paper's MLP head is not BERT's own pooler, so it starts fresh, unless it comes from a run. Adapters
    start fresh too.
    """
    random = functools.partial(init_params, encoder, config.train.seed)
    if config.model.init.startswith(START):
        load = functools.partial(load_start, config.model.init, encoder, tokenizer)
    elif config.model.init == "random" or folder is None:
        return jax.jit(random)
    else:
        kept = config.model.kept_layers
        load = functools.partial(_load, folder, encoder, mlm_head=encoder.has_mlm_head, layers=kept)
    load = load if resumes else _loaded(load)

    def initial() -> Any:
        loaded = load()
        if encoder.lora is None:
            head = {"head": jax.device_get(jax.jit(lambda: random()["head"])())} if encoder.has_head else {}
            return head | loaded

        def drawn() -> Any:
            return {name: tree for name, tree in split_params(random())[0].items() if name not in loaded.keys() & HEADS}

        return join_params(jax.device_get(jax.jit(drawn)()), loaded)

    return initial


def _load(folder: Path, encoder: Encoder, mlm_head: bool, layers: Sequence[int] = ()) -> Any:
    sizes = read_architecture(folder) if layers else encoder.architecture
    params = load_params(folder, sizes, head="none", mlm_head=mlm_head, layers=layers)
    return jax.tree.map(lambda x: np.asarray(x, encoder.param_dtype), params)


def _loaded(load: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that returns what `load` returns now; call it once, as it hands over its own copy."""
    held = [load()]
    return held.pop
