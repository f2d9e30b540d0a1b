"""Open a trained model to encode texts: a run folder, an exported or Hugging Face folder, or a Hub name.

Evaluation and serving start here. By default the pooler is the one that the model was trained for.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from simcse_jax.config.compare import differences
from simcse_jax.config.keys import parse_numbers
from simcse_jax.encoder.architecture import ENCODING_PRODUCTS
from simcse_jax.encoder.families.table import read_architecture
from simcse_jax.encoder.init import init_params
from simcse_jax.encoder.model import Encoder
from simcse_jax.encoder.pooling import is_pooler, known, width_of
from simcse_jax.encoder.products import precision, resolve_products
from simcse_jax.encoding import SentenceEncoder
from simcse_jax.model_folder.after_pooling import (
    Step,
    apply_steps,
    arrays_of,
    as_pooled,
    cut_to,
    uncut,
    width_after,
)
from simcse_jax.model_folder.module_list import encoder_folder
from simcse_jax.model_folder.origin import Origin, read_origin
from simcse_jax.model_folder.pretrained import load_params
from simcse_jax.model_folder.run_folder import START, load_run_params, parse_start
from simcse_jax.model_folder.text_settings import DOCUMENT, TextSettings
from simcse_jax.system.devices import require_unforked, start_devices
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import model_folder
from simcse_jax.system.progress import Progress
from simcse_jax.system.texts import each_text
from simcse_jax.system.vectors import normalize as normalize_rows

DTYPES = ("float32", "bfloat16")
SEED = "train.seed"


class EmbeddingModel:
    """Encode texts with one model and pooler; made by `open_model`. Weights are read when they are first needed."""

    def __init__(
        self,
        name: str,
        origin: Origin,
        pooler: str,
        dtype: str,
        max_length: int | None,
        products: str = "float32",
        truncate_dim: int | None = None,
        prompt: str | None = None,
        document_prompt: str | None = None,
    ):
        """document_prompt: of documents, where another prompt was asked for."""
        self.name = name  # for tables
        self.kind = origin.kind
        self.pooler = pooler
        self.dtype = dtype  # the precision of the computation
        self.texts = origin.texts if prompt is None else origin.texts.with_default(prompt)
        self.asked_prompt = prompt if self.texts != origin.texts else None  # None for the model's own
        self._document_prompt = document_prompt
        self._origin = origin
        start_devices()
        platform = jax.local_devices()[0].platform
        self.products = resolve_products(products, dtype, platform, "products", ENCODING_PRODUCTS)
        encoder = Encoder(origin.sizes, jnp.dtype(dtype), jnp.float32, self.products, has_head=pooler == "cls")
        self.devices = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self._sentences = SentenceEncoder(
            encoder, origin.tokenizer, mesh, pooler, max_length, self.texts.prompt, self.texts.include_prompt
        )
        self._own_steps = origin.steps if pooler == origin.pooler else origin.scaling
        # The width that was asked for; None for the model's own, also where that was asked for.
        self.truncate_dim = None if truncate_dim in (None, self._width(self._own_steps)) else truncate_dim
        self._steps = self._cut(self.truncate_dim)

    def __reduce__(self) -> tuple[Any, ...]:
        options = (self.name, self.pooler, self.dtype, self.max_length, self.products, self.truncate_dim)
        return _reopen, (self.fingerprint, *options, None, self.asked_prompt)

    def _width(self, steps: Sequence[Step]) -> int:
        """Return the number of features after these steps."""
        return width_after(steps, width_of(self.pooler, self._origin.sizes.hidden_size))

    def _cut(self, features: int | None) -> tuple[Step, ...]:
        """Return the model's own steps, cut to `features` instead if that is given."""
        if features is None:
            return self._own_steps
        self.require_width(features)
        return cut_to(self._own_steps, int(features))

    def require_width(self, features: int) -> None:
        """Raise UserError unless vectors can be cut to so many features."""
        whole = self._width(uncut(self._own_steps))
        if not isinstance(features, int | np.integer) or isinstance(features, bool) or not 1 <= features <= whole:
            known = [width for width in self._origin.widths if width < whole]
            trained = f" It was trained to be cut to {', '.join(map(str, known))}." if known else ""
            raise UserError(
                f"truncate_dim is {features!r}; the vectors of {self.name} have {whole} features: give an integer from "
                f"1 to {whole}, or leave it out.{trained}"
            )

    @property
    def precision(self) -> str:
        """Return in words what the model computes in: its dtype, and its products where these are rounded."""
        return precision(self.dtype, self.products)

    @property
    def width(self) -> int:
        """Return the number of features of an embedding."""
        return self._width(self._steps)

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the widths that embeddings may be shortened to, ascending, the whole width included."""
        return tuple(sorted({self.width, *(width for width in self._origin.widths if width < self.width)}))

    @property
    def max_length(self) -> int:
        """Return the number of tokens at which texts are cut, special tokens included."""
        return self._sentences.max_length

    @property
    def own_pooler(self) -> str:
        """Return the pooler that the model was trained for, "" if it names none."""
        return self._origin.pooler

    @property
    def left_out(self) -> list[str]:
        """Return the kinds of modules of its folder that are not used, since they follow another pooler."""
        used = [] if self.pooler == self.own_pooler else as_pooled(self._origin.steps)
        return [type(step).__name__ for step in used if step not in self._own_steps]

    @property
    def parameter_count(self) -> int:
        """Return the number of parameters that encoding uses."""
        return sum(x.size for x in jax.tree.leaves((self._params, arrays_of(self._own_steps))))

    @functools.cached_property
    def _params(self) -> Any:
        return self._select(self._origin.load(self.pooler))

    @functools.cached_property
    def _placed(self) -> Any:
        """Place the parameters on the devices, once."""
        return self._sentences.placed(self._params)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return a hex digest of the weights in use, the sizes and the tokenizer; equal for a run and its export.

        What a folder adds (a prompt, modules after pooling, its own `truncate_dim`) is in it too, but for scaling to
        length 1; the `truncate_dim` that was asked for is not.
        """
        digest = hashlib.blake2b(digest_size=16)
        sizes = self._origin.sizes.as_dict()
        for irrelevant in ("dropout", "initializer_range"):
            del sizes[irrelevant]
        backend = json.loads(self._origin.tokenizer.backend_tokenizer.to_str())
        settings = {key: backend[key] for key in backend if key not in ("truncation", "padding")}
        texts = self.texts
        prompt = [texts.prompt, *[False] * (not texts.include_prompt)] if texts.prompt else []
        digest.update(json.dumps([sizes, settings, *prompt], sort_keys=True).encode())
        arrays = self._params | arrays_of(self._own_steps)
        for path, array in jax.tree_util.tree_leaves_with_path(arrays):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())
        return digest.hexdigest()

    def encode(
        self,
        texts: Iterable[str],
        progress: Progress | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
    ) -> np.ndarray:
        """Return one vector for each text, float32[N, D]; see `SentenceEncoder.encode`.

        texts: as `system.texts.each_text` takes them. normalize: True for vectors of length 1, False for vectors as
        pooled, None for the model's own setting. prompt: put before each text; None for the model's own. truncate_dim:
        keep so many first features, before scaling; None for the model's own setting. Raises UserError if the weights
        are missing or do not fit the model, and for a text whose vector is not finite.
        """
        require_unforked()
        steps = self._steps if truncate_dim is None else self._cut(truncate_dim)
        texts = list(each_text(texts))
        pooled = self._sentences.encode(self._placed, texts, progress, prompt)
        vectors = apply_steps(as_pooled(steps) if normalize is False else steps, pooled)
        is_finite = np.isfinite(vectors).all(axis=1)
        if not is_finite.all():
            bad = int(np.argmin(is_finite))
            raise UserError(
                f"The vector of text {bad}, {texts[bad]!r:.80}, is not finite: the weights of {self.name} are broken, "
                f"or too large for {self.dtype}.\nUse an earlier checkpoint, or the precision float32."
            )
        if normalize:
            normalize_rows(vectors, out=vectors)
        return vectors

    def cut_at(self, max_length: int) -> EmbeddingModel:
        """Return the same model with texts cut at `max_length` tokens, or at all it takes, whatever its folder says."""
        longest = _bounded(max_length, self._origin.sizes.max_length)
        how = (self.pooler, self.dtype, longest, self.products, self.truncate_dim)
        return EmbeddingModel(self.name, self._origin, *how, self.asked_prompt, self._document_prompt)

    def count_tokens(self, texts: Iterable[str], cut: bool = True, prompt: str | None = None) -> np.ndarray:
        """Return the number of tokens of each text, special tokens included, as int64[N]; cut: after cutting.

        prompt: as in `encode`.
        """
        return self._sentences.count_tokens(list(each_text(texts)), cut, prompt)

    def prompt(self, name: str | None, prompt: str | None = None) -> str | None:
        """Return the prompt of that name, or the one given; None for neither, which is the model's own.

        Raises UserError for a name that the model does not have, and for both.
        """
        return _chosen(self.name, self.texts, name, prompt)

    @property
    def role_prompts(self) -> dict[str, str]:
        """Return the prompt of a "query" and of a "document", where it is another than that of any text."""
        if self._document_prompt is not None:
            return {DOCUMENT: self._document_prompt} if self._document_prompt != self.texts.prompt else {}
        return self.texts.role_prompts if self.asked_prompt is None else {}

    def before_training(self) -> tuple[Callable[[Sequence[str]], np.ndarray], str] | None:
        """Return an `encode` with a run's initial weights, as pooled, and the origin of these weights as text.

        Returns None for models that are not run folders. Raises UserError if the initial weights cannot be read.
        """
        info = self._origin.run
        if info is None:
            return None
        recipe = info["recipe"]
        encoder = Encoder(self._origin.sizes, has_head=info["has_head"])
        drawn = jax.jit(functools.partial(init_params, encoder, recipe[SEED]))()
        origin = f"random, seed {recipe[SEED]}"
        if recipe["model.init"] == "pretrained":
            folder, kept = (
                encoder_folder(model_folder(recipe["model.name"])),
                parse_numbers(recipe["model.keep_layers"]),
            )
            sizes = read_architecture(folder) if kept else self._origin.sizes
            loaded = load_params(folder, sizes, head="none", layers=kept)
            drawn = loaded | ({"head": drawn["head"]} if info["has_head"] else {})
            origin = f"pretrained, {recipe['model.name']}"
        if recipe["model.init"].startswith(START):
            drawn = drawn | load_run_params(*parse_start(recipe["model.init"]))[0]
            origin = recipe["model.init"]
        params = self._select(drawn)
        return lambda texts: apply_steps(as_pooled(self._steps), self._sentences.encode(params, texts)), origin

    @property
    def workdir(self) -> Path | None:
        """Return the run folder, or None if the model was opened from something else."""
        return self._origin.workdir

    @property
    def recipe(self) -> str:
        """Return a string that is equal for runs that differ only in the seed and encode alike; "" for other models."""
        info = self._origin.run
        if info is None:
            return ""
        # Compared with nothing, all keys that change the mathematics are differences.
        recipe = {key: new for key, (_, new) in differences({}, info["recipe"]).items() if key != SEED}
        how: list[Any] = [self.pooler, self.precision, self.max_length]
        asked = {"truncate_dim": self.truncate_dim, "prompt": self.asked_prompt, DOCUMENT: self._document_prompt}
        how += [f"{key}={value}" for key, value in asked.items() if value is not None]
        return json.dumps([recipe, info["data"]["fingerprint"], info["encoder"], how], sort_keys=True)

    def _select(self, params: Any) -> Any:
        """Return the parameters that this pooler uses, as float32."""
        unused = ("mlm",) if self.pooler == "cls" else ("mlm", "head")
        used = {name: params[name] for name in params if name not in unused}
        return jax.tree.map(lambda x: np.asarray(x, np.float32), used)


def open_model(
    name: str,
    pooler: str | None = None,
    dtype: str = "float32",
    max_length: int | None = None,
    products: str = "float32",
    truncate_dim: int | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
) -> EmbeddingModel:
    """Open a model; raises UserError if there is none of that name, or if it names no pooler and none is given.

    name: a run folder (its best checkpoint; RUN@STEP: a step that it has kept), an exported or Hugging Face folder, or
    a Hub name. pooler: None takes the model's own. dtype: the precision of the computation, one of DTYPES. max_length:
    the number of tokens at which texts are cut, or the number of the model's positions if that is lower; None takes the
    folder's max_seq_length or model_max_length, or else the model's limit. products: one of ENCODING_PRODUCTS, whatever
    it was trained with; see `encoder.products.resolve_products`. truncate_dim: keep so many first features of each
    vector, before it is scaled; None takes the folder's own, or all. prompt_name, prompt: the prompt that is put before
    texts in place of the model's own default: one of its prompts by its name, or the words. Where retrieval is judged,
    documents get the prompt NAME_document, if the model has that, as of a source of a mixture.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype} is unknown. Known: {', '.join(DTYPES)}.")
    if pooler and not is_pooler(pooler):
        raise UserError(f"pooler={pooler} is unknown. Known: {known()}.")
    origin = read_origin(name, pooler)
    longest = origin.texts.max_seq_length if max_length is None else _bounded(max_length, origin.sizes.max_length)
    asked = _chosen(name, origin.texts, prompt_name, prompt)
    of_documents = origin.texts.prompts.get(f"{prompt_name}_{DOCUMENT}") if prompt_name else None
    how = (pooler or origin.pooler, dtype, longest, products, truncate_dim)
    return EmbeddingModel(name, origin, *how, asked, of_documents)


def _chosen(model: str, texts: TextSettings, name: str | None, prompt: str | None) -> str | None:
    """Return the prompt of that name, or the one given; None for neither. UserError for both, or an unknown name."""
    if name is None:
        return prompt
    if prompt is not None:
        raise UserError(f"prompt_name = {name!r} and prompt = {prompt!r} are both given. Leave one out.")
    if not isinstance(texts.prompts.get(name), str):
        known = ", ".join(texts.prompts) or "none"
        raise UserError(
            f"{model} has no prompt of the name {name!r}; it has {known}.\nGive one of these, or the words themselves: "
            "prompt=..., on the command line --prompt=..."
        )
    return texts.prompts[name]


def _bounded(max_length: int, limit: int) -> int:
    """Return the number of tokens at which texts are cut; UserError where it is no integer."""
    if not isinstance(max_length, int | np.integer):
        raise UserError(f"max_length is {max_length!r}; it must be an integer, for example {min(128, limit)}.")
    return min(int(max_length), limit)


@functools.lru_cache(maxsize=1)
def _reopen(fingerprint: str, name: str, *options: Any) -> EmbeddingModel:
    """Open a pickled model by its name, once in a process."""
    model = open_model(name, *options)
    if model.fingerprint != fingerprint:
        raise UserError(f"{name} has changed since its model was pickled. Open and pickle it again.")
    return model
