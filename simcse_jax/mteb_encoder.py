"""Run a model on mteb, the Massive Text Embedding Benchmark (arXiv 2210.07316); install the extra [mteb].

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
from simcse_jax.system.texts import each_text
from simcse_jax.system.vectors import normalize

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mteb.models import ModelMeta

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class MtebEncoder:
    """Implement mteb's EncoderProtocol with a model of `open_model`; vectors and cosines are float32 NumPy arrays.

    model_name, pooler, dtype, max_length, products, truncate_dim: see `open_model`. mteb caches results by name and
    revision; the revision here is the model's fingerprint and the options of encoding, so that results of other weights
    are never taken for those of this model. revision and device are arguments of mteb's protocol that must be None
    here.
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
        products: str = "float32",
        truncate_dim: int | None = None,
    ):
        if revision is not None:
            raise UserError(f"MtebEncoder: revision = {revision!r}, but models have no revisions here; leave it out.")
        if device is not None:
            raise UserError(f"MtebEncoder: device = {device!r}, but JAX chooses devices; set JAX_PLATFORMS instead.")
        self.model = open_model(model_name, pooler, dtype, max_length, products, truncate_dim)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        prompt_type: Any = None,
        show_progress_bar: bool = False,
        **_: Any,
    ) -> np.ndarray:
        """Return float32[N, D], in the order of the batches; UserError where one is not finite.

        inputs: batches with the key "text". task_metadata, prompt_type: choose among the prompts of the model's folder.
        mteb's other arguments (split, batch size) have no effect: all texts are packed together.
        """
        texts = [text for batch in inputs for text in each_text(batch["text"])]
        with progress_bar(len(texts), show_progress_bar) as bar:
            return self.model.encode(texts, bar.update, prompt=self._prompt(task_metadata, prompt_type))

    def _prompt(self, task: Any, prompt_type: Any) -> str | None:
        """Return the prompt that mteb and sentence-transformers use for a task; None for the folder's default."""
        prompts, kind = self.model.texts.prompts, getattr(prompt_type, "value", prompt_type)
        of_task = [task.name, task.type] if task else []
        names = [name for one in of_task for name in ((f"{one}-{kind}", one) if kind else (one,))]
        found = next((name for name in (*names, kind) if name in prompts), None)
        return prompts[found] if found else "" if kind else None

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Return float32[N, M], the cosine of each row of one with each row of the other."""
        return np.clip(_unit(embeddings1) @ _unit(embeddings2).T, -1, 1)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Return float32[N], the cosine of each row with the same row of the other."""
        return np.clip(np.sum(_unit(embeddings1) * _unit(embeddings2), axis=-1), -1, 1)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The description of the model that mteb writes into its results."""
        from mteb.models import ModelMeta
        from mteb.models.model_meta import ScoringFunction

        model = self.model
        path = Path(model.name).expanduser()
        cut = "" if model.truncate_dim is None else f"-truncate_dim{model.truncate_dim}"
        hub = _HUB_NAME.fullmatch(model.name) and not path.exists()
        return ModelMeta.create_empty(
            {
                "name": model.name if hub else "simcse_jax/" + re.sub(r"[^\w.-]+", "_", str(path).strip("./")),
                "revision": f"{model.fingerprint}-{model.pooler}-{model.precision}-{model.max_length}{cut}",
                "embed_dim": model.width,
                "max_tokens": float(model.max_length),
                "n_parameters": model.parameter_count,
                "framework": ["JAX"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": False,
            }
        )


def _unit(vectors: Any) -> np.ndarray:
    return normalize(np.atleast_2d(np.asarray(vectors, np.float32)))
