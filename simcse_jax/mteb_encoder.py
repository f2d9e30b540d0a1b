"""Any of our models for mteb (the Massive Text Embedding Benchmark, arXiv 2210.07316): the extra [mteb].

import mteb
from simcse_jax.mteb_encoder import MtebEncoder

results = mteb.evaluate(MtebEncoder("runs/unsup"), mteb.get_tasks(tasks=["STSBenchmark"]))
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_jax.embedding_model import open_model
from simcse_jax.system.errors import UserError
from simcse_jax.system.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mteb.models import ModelMeta

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class MtebEncoder:
    """mteb's EncoderProtocol over `open_model`; vectors and similarities (cosines) are float32 NumPy arrays.

    model_name, pooler, dtype, max_length: see `open_model`. mteb keeps its results by name and revision; the revision
    here is the model's fingerprint and how it is asked to encode, so results of other weights never pass for this
    model's. revision and device are part of mteb's protocol: the first must be None, the second is not ours to choose.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        pooler: str | None = None,
        dtype: str = "float32",
        max_length: int | None = None,
    ):
        if revision is not None:
            raise UserError(f"MtebEncoder: revision = {revision!r}, but models are taken as they are; leave it out.")
        if device is not None:
            raise UserError(f"MtebEncoder: device = {device!r}, but JAX chooses devices; set JAX_PLATFORMS instead.")
        self.model = open_model(model_name, pooler, dtype, max_length)

    def encode(self, inputs: Iterable[Mapping[str, Any]], *, show_progress_bar: bool = False, **_: Any) -> np.ndarray:
        """float32[N, D], in the order of the batches. inputs: batches with the key "text".

        Everything else that mteb tells (task, split, prompts, batch size) changes nothing: the models have no prompts,
        and all texts are packed together.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        with progress_bar(len(texts), show_progress_bar) as bar:
            return self.model.encode(texts, bar.update)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """float32[N, M]: the cosine of each row of one with each row of the other."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """float32[N]: the cosine of each row with its partner."""
        return np.sum(_unit(embeddings1) * _unit(embeddings2), axis=-1)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What mteb writes into its results."""
        from mteb.models import ModelMeta
        from mteb.models.model_meta import ScoringFunction

        model = self.model
        path = Path(model.name).expanduser()
        hub = _HUB_NAME.fullmatch(model.name) and not path.exists()
        return ModelMeta.create_empty(
            {
                "name": model.name if hub else "simcse_jax/" + re.sub(r"[^\w.-]+", "_", str(path).strip("./")),
                "revision": f"{model.fingerprint}-{model.pooler}-{model.dtype}-{model.max_length}",
                "embed_dim": model.width,
                "max_tokens": float(model.max_length),
                "n_parameters": model.parameter_count,
                "framework": ["JAX"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": False,
            }
        )


def _unit(vectors: Any) -> np.ndarray:
    array = np.atleast_2d(np.asarray(vectors, np.float32))
    return array / np.maximum(np.linalg.norm(array, axis=-1, keepdims=True), 1e-12)
