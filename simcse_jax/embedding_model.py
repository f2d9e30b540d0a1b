"""A trained model as something that encodes: a run folder, an exported or Hugging Face folder, or a Hub name.

What evaluation and serving start from. The pooler is the one that the model says it was made for.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from simcse_jax.config.compare import differences
from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.table import architecture_from_saved, read_architecture
from simcse_jax.encoder.init import init_params
from simcse_jax.encoder.model import Encoder
from simcse_jax.encoder.pooling import POOLERS
from simcse_jax.encoding import SentenceEncoder
from simcse_jax.evaluation.results import OWN
from simcse_jax.model_folder.pretrained import load_params
from simcse_jax.model_folder.st_modules import normalizes, read_pooler
from simcse_jax.system.devices import start_devices
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import model_folder
from simcse_jax.system.progress import Progress
from simcse_jax.system.vectors import normalize as normalize_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DTYPES = ("float32", "bfloat16")
SEED = "train.seed"


@dataclasses.dataclass(frozen=True)
class _Origin:
    """Where a model is, and what it says of itself; its weights are read when they are asked for."""

    kind: str  # "run folder", "model folder" or "Hub model"
    sizes: Architecture
    tokenizer: PreTrainedTokenizerFast
    pooler: str  # "" when the model does not say, or asks for more than one of our poolers
    normalizes: bool
    load: Callable[[str], Any]  # pooler -> parameters
    workdir: Path | None = None  # of a run folder
    run: dict[str, Any] | None = None  # its config.json


class EmbeddingModel:
    """Encodes texts; made by `open_model`. Reads its weights when they are first needed."""

    def __init__(self, name: str, origin: _Origin, pooler: str, dtype: str, max_length: int | None):
        self.name = name  # for tables
        self.pooler = pooler
        self.dtype = dtype  # the precision of the computation
        self._origin = origin
        encoder = Encoder(origin.sizes, jnp.dtype(dtype), jnp.float32, has_head=pooler == "cls")
        start_devices()
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self._sentences = SentenceEncoder(encoder, origin.tokenizer, mesh, pooler, max_length)

    @property
    def width(self) -> int:
        """The number of features of an embedding."""
        return self._origin.sizes.hidden_size

    @property
    def max_length(self) -> int:
        """Tokens at which a text is cut, special tokens included."""
        return self._sentences.max_length

    @property
    def own_pooler(self) -> str:
        """The pooler that the model was made for; "" when it does not say."""
        return self._origin.pooler

    @property
    def parameter_count(self) -> int:
        """The number of parameters that encoding uses."""
        return sum(x.size for x in jax.tree.leaves(self._params))

    @functools.cached_property
    def _params(self) -> Any:
        return self._used(self._origin.load(self.pooler))

    @functools.cached_property
    def _placed(self) -> Any:
        """The parameters on the devices, once."""
        return self._sentences.placed(self._params)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the weights that are in use, the sizes and the tokenizer: equal for a run and its export."""
        digest = hashlib.blake2b(digest_size=16)
        sizes = self._origin.sizes.saved()
        for irrelevant in ("dropout", "initializer_range"):
            del sizes[irrelevant]
        backend = json.loads(self._origin.tokenizer.backend_tokenizer.to_str())
        settings = {key: backend[key] for key in backend if key not in ("truncation", "padding")}
        digest.update(json.dumps([sizes, settings], sort_keys=True).encode())
        for path, array in jax.tree_util.tree_leaves_with_path(self._params):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())
        return digest.hexdigest()

    def encode(
        self, texts: Sequence[str], progress: Progress | None = None, normalize: bool | None = None
    ) -> np.ndarray:
        """float32[N, D]: one vector for each text; see `SentenceEncoder.encode`.

        normalize: True for vectors of length 1, False for vectors as pooled, None for what the model asks. UserError
        when the weights are missing or do not fit the model.
        """
        vectors = self._sentences.encode(self._placed, texts, progress)
        if self._origin.normalizes if normalize is None else normalize:
            normalize_rows(vectors, out=vectors)
        return vectors

    def cut_at(self, max_length: int) -> EmbeddingModel:
        """The same model, with texts cut at `max_length` tokens, or where it takes no more."""
        return EmbeddingModel(self.name, self._origin, self.pooler, self.dtype, min(max_length, self.max_length))

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        """int64[N]: how many tokens of each text are encoded, special ones included."""
        return self._sentences.count_tokens(texts)

    def before_training(self) -> tuple[Callable[[Sequence[str]], np.ndarray], str] | None:
        """`encode` with the weights that a run folder's training began with, as pooled, and which these were.

        None for models that are no run folders. UserError when the weights that it began with can no longer be read.
        """
        info = self._origin.run
        if info is None:
            return None
        recipe = info["recipe"]
        encoder = Encoder(self._origin.sizes, has_head=info["has_head"])
        drawn = jax.jit(functools.partial(init_params, encoder, recipe[SEED]))()
        told = f"random, seed {recipe[SEED]}"
        if recipe["model.init"] == "pretrained":
            loaded = load_params(model_folder(recipe["model.name"]), self._origin.sizes, head="none")
            drawn = loaded | ({"head": drawn["head"]} if info["has_head"] else {})
            told = f"pretrained, {recipe['model.name']}"
        params = self._used(drawn)
        return lambda texts: self._sentences.encode(params, texts), told

    @property
    def workdir(self) -> Path | None:
        """The run folder, if that is what the model was opened from."""
        return self._origin.workdir

    @property
    def recipe(self) -> str:
        """The same for runs that differ in nothing but the seed and encode alike; "" for models that are no runs."""
        info = self._origin.run
        if info is None:
            return ""
        # Against nothing, every key that changes the mathematics is a difference.
        recipe = {key: new for key, (_, new) in differences({}, info["recipe"]).items() if key != SEED}
        how = [self.pooler, self.dtype, self.max_length]
        return json.dumps([recipe, info["data"]["fingerprint"], info["encoder"], how], sort_keys=True)

    def protocol(self) -> dict[str, Any]:
        """What every score of this model has to say: how its vectors were made, and from which weights."""
        asked = self.pooler != self.own_pooler
        own = self.own_pooler or "none that we have"
        return {
            "model": self.name,
            "kind": self._origin.kind,
            "fingerprint": self.fingerprint,
            "pooler": self.pooler,
            "pooler from": f"asked for; the model's own: {own}" if asked else OWN,
            "precision": self.dtype,
            "truncation": f"{self.max_length} tokens",
            "devices": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
        }

    def _used(self, params: Any) -> Any:
        """The part of the parameters that this pooler uses, as float32."""
        names = ("embeddings", "layers", "head") if self.pooler == "cls" else ("embeddings", "layers")
        used = {name: params[name] for name in params if name in names}
        return jax.tree.map(lambda x: np.asarray(x, np.float32), used)


def open_model(
    name: str, pooler: str | None = None, dtype: str = "float32", max_length: int | None = None
) -> EmbeddingModel:
    """The model of that name; UserError when it is none, or does not say how it pools and `pooler` is not given.

    name: a run folder (its best checkpoint), an exported or Hugging Face folder, or a Hub name. pooler: None = the
    model's own. dtype: the precision of the computation, one of DTYPES. max_length: tokens at which texts are cut;
    None = what the model can take.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype} is unknown. Known: {', '.join(DTYPES)}.")
    if pooler and pooler not in POOLERS:
        raise UserError(f"pooler={pooler} is unknown. Known: {', '.join(POOLERS)}.")
    path = Path(name).expanduser()
    origin = _run_folder(path, pooler) if is_run_folder(path) else _model_folder(name, bool(pooler))
    return EmbeddingModel(name, origin, pooler or origin.pooler, dtype, max_length)


def is_run_folder(path: Path) -> bool:
    """Whether this is a folder that a training run made."""
    return (path / "checkpoints").is_dir()


def _run_folder(workdir: Path, pooler: str | None) -> _Origin:
    from simcse_jax.training.folder import read_run_info
    from simcse_jax.training.saved import load_best

    info = read_run_info(workdir)
    if info is None:
        raise UserError(f"{workdir} has checkpoints but no config.json, so it is no run folder that can be read.")
    if pooler == "cls" and not info["has_head"]:
        raise UserError(
            f"{workdir} has no trained head, which the pooler 'cls' needs.\n"
            f"Use its own pooler, {info['pooler']}, or cls_before_pooler."
        )
    return _Origin(
        kind="run folder, its best checkpoint",
        sizes=architecture_from_saved(info["encoder"]),
        tokenizer=load_tokenizer(workdir / info["tokenizer"]),
        pooler=info["pooler"],
        normalizes=False,
        load=lambda _: load_best(workdir)[0],
        workdir=workdir,
        run=info,
    )


def _model_folder(name: str, pooler_given: bool) -> _Origin:
    try:
        folder = model_folder(name)
    except UserError as error:
        if Path(name).expanduser().exists():
            raise
        raise UserError(f"There is no folder {name} in {Path.cwd()}, nor can a Hub model be had:\n{error}") from error
    sizes = read_architecture(folder)
    try:
        own = read_pooler(folder)
    except UserError as error:
        if not pooler_given:
            raise UserError(f"{error}\nGive it as --pooler=NAME, in Python as pooler=NAME.") from error
        own = ""
    return _Origin(
        kind="model folder" if Path(name).expanduser().is_dir() else "Hub model",
        sizes=sizes,
        tokenizer=load_tokenizer(folder),
        pooler=own,
        normalizes=normalizes(folder),
        load=lambda pooler: load_params(folder, sizes, head="load" if pooler == "cls" else "none"),
    )
