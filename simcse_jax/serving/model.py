"""`SimCSE`: encode, compare and search with a trained model, in a few words of Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, overload

import jax.numpy as jnp
import numpy as np

from simcse_jax.embedding_model import open_model
from simcse_jax.serving.blocks import blocks
from simcse_jax.serving.corpus_texts import corpus_texts
from simcse_jax.serving.fingerprint import fingerprint
from simcse_jax.serving.index.sentence_index import Hit, SentenceIndex, open_index
from simcse_jax.serving.mining import Pair, paraphrases, require_cosine
from simcse_jax.system.errors import UserError
from simcse_jax.system.progress import progress_bar
from simcse_jax.system.vectors import normalize as normalize_rows

BATCH = 16384  # sentences that are tokenised, sorted and packed together


class SimCSE:
    """A trained sentence encoder, and at most one index of sentences.

    name: a run folder, an exported or Hugging Face folder, or a Hub name. pooler: None = the model's own. dtype: the
    precision of the computation, "float32" or "bfloat16". max_length: tokens at which a text is cut, special tokens
    included; a model that takes fewer cuts there. Raises UserError where the model cannot be had, or does not say how
    it pools and `pooler` is not given.
    """

    def __init__(self, name: str | Path, pooler: str | None = None, dtype: str = "float32", max_length: int = 128):
        self.encoder = open_model(str(name), pooler, dtype).cut_at(max_length)
        self.index: SentenceIndex | None = None

    @property
    def width(self) -> int:
        """D, the number of features of an embedding."""
        return self.encoder.width

    @property
    def fingerprint(self) -> str:
        """Says which vectors belong together: weights, tokenizer, pooler and the length at which texts are cut."""
        return fingerprint(self.encoder.fingerprint, self.encoder.pooler, self.encoder.max_length)

    def __repr__(self) -> str:
        index = f", {self.index!r}" if self.index is not None else ""
        encoder = self.encoder
        return f"SimCSE({encoder.name!r}, pooler={encoder.pooler!r}, max_length={encoder.max_length}{index})"

    def encode(
        self,
        sentences: str | Iterable[str] | Path,
        batch_size: int = BATCH,
        normalize: bool = True,
        show_progress: bool = False,
        return_numpy: bool = True,
    ) -> Any:
        """float32[D] of a string; float32[N, D] of a list, in its order; an iterator over blocks of a stream.

        A generator, or the `Path` of a file of sentences, is streamed: it gives an iterator of float32[n, D], n =
        `batch_size` but for the last, and no more than a block is held. The file may be of any format that training
        reads, with one column of text; blank lines are passed over, as in training. A list is taken in such blocks
        too, but the result is whole. normalize: vectors of length 1; else as pooled. return_numpy: False gives JAX
        arrays. An empty text is its special tokens; a long one is cut. TypeError for what is no text.
        """
        if isinstance(sentences, bytes) or not isinstance(sentences, Iterable | Path):
            kind = type(sentences).__name__
            raise TypeError(f"Text is a string, a list or generator of strings, or the Path of a file; got {kind}.")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it is a number of sentences, 1 at least.")

        if isinstance(sentences, str):
            return self.encode([sentences], batch_size, normalize, show_progress, return_numpy)[0]
        texts = iter(corpus_texts([str(sentences)])) if isinstance(sentences, Path) else sentences

        def parts() -> Iterator[Any]:
            with progress_bar(_count(texts), show_progress) as bar:
                for block in blocks(texts, batch_size):
                    vectors = self.encoder.encode(block, bar.update, normalize)
                    yield vectors if return_numpy else jnp.asarray(vectors)

        if isinstance(texts, Iterator):
            return parts()
        whole = list(parts()) or [np.zeros((0, self.width), np.float32)]
        return whole[0] if len(whole) == 1 and return_numpy else (np if return_numpy else jnp).concatenate(whole)

    def count_tokens(self, sentences: Sequence[str]) -> np.ndarray:
        """int64[N]: how many tokens of each sentence are encoded, special ones included."""
        return self.encoder.count_tokens(sentences)

    def similarity(self, queries: Any, keys: Any) -> Any:
        """Cosine similarities: float32[N, M] of N queries and M keys; one string or vector leaves its axis out.

        Each side is a string, a list of strings, a vector [D] or a matrix [N, D]. Two strings give a float.
        """
        cosines = self._unit(queries) @ self._unit(keys).T
        return float(cosines) if cosines.ndim == 0 else cosines

    def build_index(
        self,
        sentences: Iterable[str] | Path,
        kind: str = "exact",
        storage: str = "float32",
        show_progress: bool = False,
    ) -> SentenceIndex:
        """A new index of these sentences, which `search` uses from now on. They are streamed, and numbered from 0.

        kind: "exact", or "hnsw" or "ivfpq" through faiss. storage: "float32", "float16" or "int8".
        """
        index = SentenceIndex(self.width, self.fingerprint, kind, storage)
        self._add(index, sentences, show_progress)
        index.prepare()
        self.index = index
        return index

    def add(self, sentences: str | Iterable[str] | Path, show_progress: bool = False) -> np.ndarray:
        """int64[n]: the numbers of these sentences, which are now in the index."""
        return self._add(self._indexed(), [sentences] if isinstance(sentences, str) else sentences, show_progress)

    def remove(self, ids: int | Iterable[int]) -> None:
        """Take sentences out of the index by their numbers."""
        self._indexed().remove([ids] if isinstance(ids, int | np.integer) else ids)

    def save(self, folder: str | Path) -> None:
        """Write the index: vectors, texts, and which model they are of."""
        self._indexed().save(Path(folder))

    def load_index(self, folder: str | Path) -> SentenceIndex:
        """The index in that folder, memory-mapped, which `search` uses from now on; UserError if of another model."""
        self.index = open_index(Path(folder), self.fingerprint)
        return self.index

    @overload
    def search(self, queries: str, top_k: int = 5, threshold: float | None = None) -> list[Hit]: ...

    @overload
    def search(self, queries: Sequence[str], top_k: int = 5, threshold: float | None = None) -> list[list[Hit]]: ...

    @overload
    def search(self, queries: np.ndarray, top_k: int = 5, threshold: float | None = None) -> Any: ...

    def search(self, queries: Any, top_k: int = 5, threshold: float | None = None) -> Any:
        """The most similar sentences of the index, (text, score, id), best first; of several queries, a list each.

        queries: as in `similarity`. threshold: leave out what scores less; None = always `top_k`.
        """
        vectors = self._unit(queries)
        hits = self._indexed().search(np.atleast_2d(vectors), top_k, threshold)
        return hits[0] if vectors.ndim == 1 else hits

    def paraphrases(self, sentences: Iterable[str], threshold: float = 0.85) -> list[Pair]:
        """Pairs with a cosine of `threshold` or more, best first: two places in the list, and the score.

        See `serving.mining.paraphrases`.
        """
        require_cosine("threshold", threshold, 0.85)
        if isinstance(sentences, str):
            raise TypeError("paraphrases takes a list of sentences; got one str.")
        sentences = list(sentences)
        return paraphrases(sentences, self.encode(sentences), threshold)

    def _indexed(self) -> SentenceIndex:
        if self.index is None:
            raise UserError("There is no index yet: call build_index(sentences) or load_index(folder) first.")
        return self.index

    def _add(self, index: SentenceIndex, sentences: Iterable[str] | Path, show_progress: bool) -> np.ndarray:
        if isinstance(sentences, str):
            raise TypeError("An index takes a list of sentences, or the Path of a file of them; got one str.")
        texts = corpus_texts([str(sentences)]) if isinstance(sentences, Path) else sentences
        with progress_bar(_count(texts), show_progress) as bar:
            added = [
                index.add(part, self.encoder.encode(part, bar.update, normalize=True)) for part in blocks(texts, BATCH)
            ]
        return np.concatenate(added) if added else np.zeros(0, np.int64)

    def _unit(self, of: Any) -> np.ndarray:
        """float32[D] or float32[N, D] of length 1, of texts or vectors."""
        if not hasattr(of, "ndim"):
            return self.encode(list(of) if isinstance(of, Iterator) else of)
        vectors = np.asarray(of, np.float32)
        if vectors.ndim not in (1, 2) or vectors.shape[-1] != self.width:
            raise ValueError(
                f"Vectors of this model are [{self.width}] or [N, {self.width}]; got {list(vectors.shape)}."
            )
        return normalize_rows(vectors)


def _count(texts: Iterable[str]) -> int | None:
    """How many there are; None where that is known at the end only."""
    return len(texts) if isinstance(texts, Sized) else None
