"""Define what every side of `benchmarks.train_speed` trains on: batches, first weights, FLOPs.

Our side writes it into a folder, and the others read it. Light to import: each side is measured with its own libraries
in memory and no others.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from simcse_jax.encoder.architecture import Architecture

VIEWS = 2
TEMPERATURE = 0.05
LEARNING_RATE = 3e-5
CLIP_NORM = 1.0
DROPOUT = 0.1


@dataclasses.dataclass(frozen=True)
class Work:
    """Describe unsupervised SimCSE of an encoder with random weights: AdamW, linear decay over `steps` steps, clipping.

    dtype: the encoder's precision, "float32" or "bfloat16"; parameters are float32.
    """

    folder: Path  # shared by the sides
    data: str
    tokenizer: str
    architecture: Architecture
    batch_size: int
    max_length: int
    dtype: str
    steps: int
    dropout: float = DROPOUT
    unroll: str = "auto"  # our side's model.unroll
    products: str = "float32"  # our side's model.products
    attention: str = "auto"  # our side's model.attention

    @property
    def model(self) -> Path:
        """Return the folder with the first weights, as transformers and sentence-transformers read it."""
        return self.folder / "model"

    def write_batches(self, ids: np.ndarray, lengths: np.ndarray, texts: list[list[str]]) -> None:
        """Store the batches of all steps: ids int32[steps, B, max_length], lengths int32[steps, B], and the texts."""
        np.save(self.folder / "ids.npy", ids)
        np.save(self.folder / "lengths.npy", lengths)
        (self.folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")

    def lengths(self) -> np.ndarray:
        """Return int32[steps, B]: the tokens of each sentence, special tokens included."""
        return np.load(self.folder / "lengths.npy")

    def padded(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (token ids, mask), int64[2 B, longest of the batch]: both views, one after the other."""
        lengths = np.tile(np.load(self.folder / "lengths.npy", mmap_mode="r")[step], VIEWS)
        ids = np.load(self.folder / "ids.npy", mmap_mode="r")[step, :, : lengths.max()]
        mask = np.arange(lengths.max()) < lengths[:, None]
        return np.tile(ids, (VIEWS, 1)).astype(np.int64), mask.astype(np.int64)

    def texts(self, first: int, last: int) -> list[str]:
        """Return the sentences of steps first <= step < last, in order."""
        return [text for batch in json.loads((self.folder / "texts.json").read_text())[first:last] for text in batch]

    def flops(self, lengths: np.ndarray) -> float:
        """Return the FLOPs that one step needs on average: real tokens only, forward and twice that backward.

        lengths [steps, B]. Counts the products with matrices, attention of each token to those of its sentence, the
        head on the first tokens, and the cosines. Optimizer, norms and dropout multiply next to nothing.
        """
        of, tokens = self.architecture, lengths.astype(np.float64)
        weights = sum(math.prod(product.sizes) for product in of.layer_products.values())
        matrices = 2 * of.num_hidden_layers * weights * tokens.sum(1)
        attention = 4 * of.num_hidden_layers * of.hidden_size * (tokens**2).sum(1)
        head = 2 * of.hidden_size**2 * lengths.shape[1]
        cosines = 2 * of.hidden_size * lengths.shape[1] ** 2
        return float(3 * (VIEWS * (matrices + attention + head) + cosines).mean())
