"""Refuse an export whose folder, read back, does not give the vectors of the model that was exported."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.model import Encoder
from simcse_jax.encoding import SentenceEncoder
from simcse_jax.model_folder.after_pooling import Step, apply_steps
from simcse_jax.model_folder.module_list import encoder_folder
from simcse_jax.model_folder.origin import read_origin
from simcse_jax.model_folder.text_settings import TextSettings
from simcse_jax.system.cache import cache_folder
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import ADAPTER
from simcse_jax.system.vectors import normalize

TOLERANCE = 1e-4  # of an entry of a vector of length 1
HALF_TOLERANCE = 1e-2  # of weights that were rounded to float16
SAMPLES = (
    "A man plays the guitar.",
    "Someone is making music, isn't she?",
    "THE QUICK BROWN FOX jumps over 13 lazy dogs",
    "Übung macht den Meister; 学而时习之。",
    "It rained all night, so the road that leads from the village to the old mill by the river was under water.",
)


def require_same_vectors(
    folder: Path,
    params: Mapping[str, Any],
    architecture: Architecture,
    tokenizer_folder: Path,
    pooler: str,
    texts: TextSettings,
    steps: Sequence[Step],
    tolerance: float = TOLERANCE,
) -> None:
    """Raise UserError unless a folder gives some sentences the vectors that these parameters give them.

    The other arguments are those of `export_model`. Both are encoded in float32 on one device of this process.
    """
    mesh = Mesh(np.array(jax.local_devices()[:1]), ("data",))
    tokenizer = load_tokenizer(tokenizer_folder)
    encoder = _encoder(architecture, pooler)
    exported = SentenceEncoder(
        encoder, tokenizer, mesh, pooler, texts.max_seq_length, texts.prompt, texts.include_prompt
    )
    origin = read_origin(str(folder), None)
    found, same = origin.texts, exported.with_tokenizer(origin.tokenizer)
    if (_encoder(origin.sizes, origin.pooler), origin.pooler, found) != (encoder, pooler, texts):
        how = (found.max_seq_length, found.prompt, found.include_prompt)
        same = SentenceEncoder(_encoder(origin.sizes, origin.pooler), origin.tokenizer, mesh, origin.pooler, *how)
    used = {name: tree for name, tree in params.items() if name != "mlm" and (name != "head" or pooler == "cls")}
    wanted = apply_steps(steps, exported.encode(jax.tree.map(_float32, used), SAMPLES))
    given = apply_steps(origin.steps, same.encode(origin.load(origin.pooler), SAMPLES))
    _forget_merged(folder)
    fits = wanted.shape == given.shape
    gap = float(np.abs(normalize(wanted) - normalize(given)).max()) if fits else np.inf
    if not gap <= tolerance:
        raise UserError(
            f"The export was not finished: read back, its vectors (of length 1) differ by {gap:.2g} from those of the "
            f"model that was exported, and {tolerance:g} is allowed.\n{_way_out(folder)}"
        )


def _encoder(sizes: Architecture, pooler: str) -> Encoder:
    return Encoder(dataclasses.replace(sizes, dropout=0.0, cutoff="", initializer_range=0.02), has_head=pooler == "cls")


def _float32(x: Any) -> np.ndarray:
    return np.asarray(x, np.float32)


def _way_out(folder: Path) -> str:
    if (folder / ADAPTER).is_file():
        return (
            "The model that the adapters adapt may have changed since the run began. Restore it, or export the merged "
            "model: leave --adapter out."
        )
    return "Nothing was changed at the folder's place. Please report this, with the command."


def _forget_merged(folder: Path) -> None:
    """Remove what reading an adapter has merged into the cache: the folder gets another place."""
    inner = encoder_folder(folder)
    if inner.is_relative_to(cache_folder("merged")):
        shutil.rmtree(inner, ignore_errors=True)
