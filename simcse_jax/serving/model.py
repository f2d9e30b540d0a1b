"""Encode, compare and search texts with a trained model: the class `SimCSE`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from simcse_jax.data.texts import in_blocks, open_column
from simcse_jax.embedding_model import open_model
from simcse_jax.serving.argument_names import names_ours
from simcse_jax.serving.index.folder import vector_fingerprint
from simcse_jax.serving.index.sentence_index import Hit, SentenceIndex, open_index
from simcse_jax.serving.paraphrases import Pair, paraphrases
from simcse_jax.serving.vector_file import is_vector_file, read_vectors
from simcse_jax.system.errors import UserError
from simcse_jax.system.mirror import local_path, written
from simcse_jax.system.progress import progress_bar
from simcse_jax.system.texts import each_text, one_text
from simcse_jax.system.vectors import normalize as normalize_rows
from simcse_jax.system.vectors import require_cosine

SHORT = 128  # tokens at which texts are cut if nobody asks for more
BATCH = 16384  # sentences that are tokenised, sorted by length and packed together


class SimCSE:
    """Encode sentences with a trained model, and search them in an index.

    name: a run folder, an exported or Hugging Face folder, or a Hub name. pooler: None takes the model's own. dtype:
    the precision of the computation, "float32" or "bfloat16". max_length: texts are cut at this number of tokens,
    special tokens included, or at the number of the model's positions if that is lower; None for 128, or for the limit
    that its folder states if that is lower. products: "bfloat16" rounds the factors of matrix products, which CPUs with
    matrix units multiply several times faster; "auto" does so on such a CPU and nowhere else; "int8" quantises them, on
    CPUs. truncate_dim: keep so
    many first features of each vector, before it is scaled to length 1; None for the folder's setting, or all. Raises
    UserError if the model cannot be read, or if it does not say how it pools and `pooler` is not given.
    """

    @names_ours
    def __init__(
        self,
        name: str | Path,
        pooler: str | None = None,
        dtype: str = "float32",
        max_length: int | None = None,
        products: str = "float32",
        truncate_dim: int | None = None,
    ):
        try:
            encoder = open_model(str(name), pooler, dtype, products=products, truncate_dim=truncate_dim)
            self.encoder = encoder.cut_at(min(SHORT, encoder.max_length) if max_length is None else max_length)
        except UserError as error:
            raise error.with_traceback(None) from None  # its message says what our calls would not
        self.index: SentenceIndex | None = None

    @property
    def width(self) -> int:
        """Return D, the number of features of an embedding."""
        return self.encoder.width

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the widths that embeddings may be shortened to, ascending: D, and those of a Matryoshka loss."""
        return self.encoder.widths

    @property
    def max_length(self) -> int:
        """Return the number of tokens at which texts are cut, special tokens included."""
        return self.encoder.max_length

    @property
    def fingerprint(self) -> str:
        """Return a string that is equal for models whose vectors may be compared.

        It says the weights, the pooler, max_length, and truncate_dim where that was given.
        """
        encoder = self.encoder
        return vector_fingerprint(encoder.fingerprint, encoder.pooler, encoder.max_length, encoder.truncate_dim)

    def __getstate__(self) -> dict[str, Any]:
        if self.index is not None:
            raise TypeError("A model with an index cannot be pickled: save(folder), and load_index(folder) elsewhere.")
        return vars(self)

    def __repr__(self) -> str:
        index = f", {self.index!r}" if self.index is not None else ""
        encoder = self.encoder
        cut = "" if encoder.truncate_dim is None else f", truncate_dim={encoder.truncate_dim}"
        return f"SimCSE({encoder.name!r}, pooler={encoder.pooler!r}, max_length={encoder.max_length}{cut}{index})"

    @overload
    def encode(
        self,
        sentences: Iterator[str] | Path,
        batch_size: int = BATCH,
        normalize: bool = True,
        show_progress: bool = False,
        return_numpy: Literal[True] = True,
        truncate_dim: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Iterator[np.ndarray]: ...

    @overload
    def encode(
        self,
        sentences: Iterator[str] | Path,
        batch_size: int = BATCH,
        normalize: bool = True,
        show_progress: bool = False,
        *,
        return_numpy: Literal[False],
        truncate_dim: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Iterator[jax.Array]: ...

    @overload
    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int = BATCH,
        normalize: bool = True,
        show_progress: bool = False,
        return_numpy: Literal[True] = True,
        truncate_dim: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> np.ndarray: ...

    @overload
    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int = BATCH,
        normalize: bool = True,
        show_progress: bool = False,
        *,
        return_numpy: Literal[False],
        truncate_dim: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> jax.Array: ...

    @names_ours
    def encode(
        self,
        sentences: str | Iterable[str] | Path,
        batch_size: int = BATCH,
        normalize: bool = True,
        show_progress: bool = False,
        return_numpy: bool = True,
        truncate_dim: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> np.ndarray | jax.Array | Iterator[np.ndarray] | Iterator[jax.Array]:
        """Return float32[D] for a string, float32[N, D] for a list in its order, or an iterator of blocks for a stream.

        A generator, or the `Path` of a file of sentences, is a stream: the result is an iterator of float32[n, D] with
        n = `batch_size`, the last perhaps smaller, and only one block is in memory. The file may have any format that
        training reads, with one column of text; blank lines are skipped. normalize: True for vectors of length 1,
        False for vectors as pooled. show_progress: a bar, or a line every 30 seconds where standard error is not a
        terminal. return_numpy: False for JAX arrays. truncate_dim: keep so many first features in this call, before
        scaling; None for the model's own. prompt_name, prompt: one of the model's prompts by its name, or the words
        themselves, put before each text; None for the model's default. An empty text is encoded as its special tokens.
        Raises TypeError for anything that is not text, and UserError for half a surrogate pair; see
        `system.texts.each_text`.
        """
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; it must be an integer of at least 1.")
        if (text := one_text(sentences)) is not None:
            options: Any = {"truncate_dim": truncate_dim, "prompt_name": prompt_name, "prompt": prompt}
            return self.encode([text], batch_size, normalize, show_progress, return_numpy=return_numpy, **options)[0]
        words = self.encoder.prompt(prompt_name, prompt)
        texts = iter(open_column([str(sentences)])) if isinstance(sentences, Path) else sentences
        checked = each_text(texts)

        def parts() -> Iterator[Any]:
            with progress_bar(_count(texts), show_progress) as bar:
                for block in in_blocks(checked, batch_size):
                    vectors = self.encoder.encode(block, bar.update, normalize, words, truncate_dim)
                    yield vectors if return_numpy else jnp.asarray(vectors)

        if isinstance(texts, Iterator):
            return parts()
        whole = list(parts()) or [self.encoder.encode([], truncate_dim=truncate_dim)]
        return whole[0] if len(whole) == 1 and return_numpy else (np if return_numpy else jnp).concatenate(whole)

    @property
    def prompts(self) -> dict[str, str]:
        """Return the model's prompts by their names."""
        return {name: words for name, words in self.encoder.texts.prompts.items() if isinstance(words, str)}

    def count_tokens(self, sentences: Iterable[str], cut: bool = True, prompt: str | None = None) -> np.ndarray:
        """Return the number of tokens of each sentence, special tokens included, as int64[N].

        cut: after cutting. prompt: as in `encode`.
        """
        return self.encoder.count_tokens(sentences, cut, prompt)

    @overload
    def similarity(self, queries: str, keys: str) -> float: ...

    @overload
    def similarity(
        self, queries: str | np.ndarray | jax.Array, keys: str | np.ndarray | jax.Array
    ) -> float | np.ndarray: ...

    @overload
    def similarity(
        self, queries: Iterable[str] | np.ndarray | jax.Array, keys: Iterable[str] | np.ndarray | jax.Array
    ) -> np.ndarray: ...

    @names_ours
    def similarity(self, queries: Any, keys: Any) -> float | np.ndarray:
        """Return the cosines of N queries and M keys as float32[N, M].

        Each side is a string, texts (a list, Series or array of strings), a vector [D] or a matrix [N, D]; a string or
        vector drops its axis, so two strings give a float.
        """
        cosines = np.clip(self._unit(queries) @ self._unit(keys).T, -1, 1)
        return float(cosines) if cosines.ndim == 0 else cosines

    @names_ours
    def build_index(
        self,
        sentences: Iterable[str] | Path,
        kind: str = "exact",
        storage: str = "float32",
        show_progress: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> SentenceIndex:
        """Build and return an index of these sentences, with ids from 0; `search` uses it from now on.

        sentences: a list, a generator or the `Path` of a file, which are streamed. A file that `embed` wrote with this
        model has the vectors, which are taken from there; UserError if other settings or weights made them. kind:
        "exact", "binary", or "hnsw" or "ivfpq", which need faiss. storage: of the vectors, "float32", "float16" or
        "int8". prompt_name, prompt: as in `encode`, of these sentences and those that `add` adds.
        """
        index = SentenceIndex(self.width, self.fingerprint, kind, storage)
        index.prompt = self.encoder.prompt(prompt_name, prompt)
        self._add(index, sentences, show_progress)
        index.prepare()
        self.index = index
        return index

    def add(self, sentences: str | Iterable[str] | Path, show_progress: bool = False) -> np.ndarray:
        """Add sentences to the index and return their ids, int64[n]."""
        text = one_text(sentences)
        return self._add(self._indexed(), sentences if text is None else [text], show_progress)

    def remove(self, ids: int | Iterable[int]) -> None:
        """Remove the sentences with these ids from the index."""
        self._indexed().remove([ids] if isinstance(ids, int | np.integer) else ids)

    def save(self, folder: str | Path) -> None:
        """Save the index to a folder: texts, vectors, and the fingerprint of this model."""
        with written(folder) as path:
            self._indexed().save(path)

    def load_index(self, folder: str | Path) -> SentenceIndex:
        """Open a saved index, memory-mapped; `search` uses it from now on. UserError if another model made it."""
        self.index = open_index(local_path(folder), self.fingerprint)
        return self.index

    @overload
    def search(
        self,
        queries: str,
        top_k: int = 5,
        threshold: float | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> list[Hit]: ...

    @overload
    def search(
        self,
        queries: Sequence[str],
        top_k: int = 5,
        threshold: float | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> list[list[Hit]]: ...

    @overload
    def search(self, queries: np.ndarray, top_k: int = 5, threshold: float | None = None) -> Any: ...

    @names_ours
    def search(
        self,
        queries: Any,
        top_k: int = 5,
        threshold: float | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Any:
        """Return the most similar sentences as (text, score, id), best first; for several queries a list each.

        queries: as in `similarity`. threshold: the lowest score of a hit, up to rounding, so that 1 finds the text
        itself; None for always `top_k` hits. prompt_name, prompt: of the queries, as in `encode`.
        """
        vectors = self._unit(queries, self.encoder.prompt(prompt_name, prompt))
        hits = self._indexed().search(np.atleast_2d(vectors), top_k, threshold)
        return hits[0] if vectors.ndim == 1 else hits

    def paraphrases(self, sentences: Iterable[str], threshold: float = 0.85) -> list[Pair]:
        """Return the pairs with a cosine of `threshold` or more as (place, place, score), best first.

        See `serving.paraphrases`.
        """
        require_cosine("threshold", threshold, 0.85)
        sentences = list(each_text(sentences))
        return paraphrases(sentences, self.encode(sentences), threshold)

    def _indexed(self) -> SentenceIndex:
        if self.index is None:
            raise UserError("There is no index yet. Call build_index(sentences) or load_index(folder) first.")
        return self.index

    def _add(self, index: SentenceIndex, sentences: Iterable[str] | Path, show_progress: bool) -> np.ndarray:
        if isinstance(sentences, Path) and is_vector_file(sentences):
            with progress_bar(None, show_progress, what="reading", unit="vectors") as bar:
                added = []
                for texts, vectors in read_vectors(sentences, self.fingerprint, index.prompt):
                    added.append(index.add(texts, vectors))
                    bar.update(len(texts))
        else:
            texts = open_column([str(sentences)]) if isinstance(sentences, Path) else sentences
            checked = each_text(texts)
            with progress_bar(_count(texts), show_progress) as bar:
                added = [
                    index.add(part, self.encoder.encode(part, bar.update, True, index.prompt))
                    for part in in_blocks(checked, BATCH)
                ]
        return np.concatenate(added) if added else np.zeros(0, np.int64)

    def _unit(self, of: Any, prompt: str | None = None) -> np.ndarray:
        """Return float32[D] or float32[N, D] of length 1 for texts, with a prompt, or vectors."""
        if (text := one_text(of)) is not None:
            return self.encode(text, prompt=prompt)
        if not hasattr(of, "ndim") or np.asarray(of).dtype.kind in "OSTU":
            return self.encode(list(each_text(of)), prompt=prompt)
        if prompt is not None:
            raise UserError(
                "A prompt is put before texts, and the queries are vectors: leave prompt_name and prompt out."
            )
        vectors = np.asarray(of, np.float32)
        if vectors.ndim not in (1, 2) or vectors.shape[-1] != self.width:
            raise ValueError(
                f"Vectors of this model have the shape [{self.width}] or [N, {self.width}]; got {list(vectors.shape)}."
            )
        return normalize_rows(vectors)


def _count(texts: Iterable[str]) -> int | None:
    """Return the number of texts, or None for a stream."""
    return len(texts) if isinstance(texts, Sized) else None
