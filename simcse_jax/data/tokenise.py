"""Turn blocks of rows of text into Arrow tables of token ids, lengths and hashes."""

import hashlib
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

Row = tuple[int, tuple[Any, ...]]  # document and cells: texts, and perhaps a score


class Tokeniser(NamedTuple):
    """Hold what turns texts into token ids."""

    backend: Any  # a `tokenizers.Tokenizer` that neither truncates nor pads
    max_length: int
    unknown: int | None  # the id of the token for what the vocabulary lacks
    prompts: tuple[str, ...] = ()  # put before the texts of each column; () for none

    def encode(self, texts: Sequence[str], column: int) -> tuple[list[Any], np.ndarray]:
        """Return the encodings of a column's texts with their prompt, and bool[n]: whether a text has tokens itself."""
        prompt = self.prompts[column] if self.prompts else ""
        encoded = self.backend.encode_batch_fast([prompt + text for text in texts] if prompt else texts)
        counts = np.fromiter(map(len, encoded), np.int32, len(encoded))
        if not prompt:
            return encoded, counts > self.special
        has_tokens = counts > len(self.backend.encode(prompt))
        for place in np.flatnonzero(~has_tokens).tolist():  # the last token of the prompt may have joined the text
            has_tokens[place] = len(self.backend.encode(texts[place])) > self.special
        return encoded, has_tokens

    @property
    def special(self) -> int:
        """The special tokens of a text."""
        return self.backend.num_special_tokens_to_add(False)


def schema_of(width: int, has_scores: bool) -> "pa.Schema":
    """Return the columns of a table of `width` texts a row."""
    import pyarrow as pa

    kinds = {"ids": pa.list_(pa.int32()), "full": pa.int32(), "hash": pa.uint64()}
    views = {f"{name}_{v}": kind for v in range(width) for name, kind in kinds.items()}
    return pa.schema({"document": pa.int32(), **views} | ({"score": pa.float32()} if has_scores else {}))


def tokenise(rows: Sequence[Row], tokeniser: Tokeniser, width: int, has_scores: bool) -> "pa.Table":
    """Return the token ids, untruncated lengths and hashes of (document, cells) rows, and their scores.

    A hash is of a text alone, without its prompt.

    Rows whose first or second text has no tokens ("\u200b" is no blank, yet a tokenizer may find nothing in it) are
    left out; a further text without tokens is missing: no ids, length 0, hash 0.
    """
    import pyarrow as pa

    documents, cells = zip(*rows, strict=True)
    columns = list(zip(*cells, strict=True))
    arrays: list[pa.Array] = [pa.array(documents, pa.int32())]
    is_kept = np.ones(len(rows), bool)
    for v, texts in enumerate(columns[:width]):
        encoded, has_tokens = tokeniser.encode(texts, v)
        full = np.fromiter(map(len, encoded), np.int32, len(encoded))
        suffix = _suffix(encoded[int(full.argmax())].special_tokens_mask)
        full *= has_tokens
        flat = itertools.chain.from_iterable(e.ids for e, has in zip(encoded, has_tokens, strict=True) if has)
        ids, offsets = _truncate(np.fromiter(flat, np.int32, int(full.sum())), full, tokeniser.max_length, suffix)
        hashes = np.where(has_tokens, text_hashes(texts), np.uint64(0))
        arrays += [pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids)), pa.array(full), pa.array(hashes)]
        if v < 2:
            is_kept &= has_tokens
    if has_scores:
        arrays.append(pa.array(columns[width], pa.float32()))
    return pa.table(arrays, schema=schema_of(width, has_scores)).filter(pa.array(is_kept))


def _suffix(special_tokens_mask: Sequence[int]) -> int:
    """Return how many special tokens end the sentence."""
    return sum(1 for _ in itertools.takewhile(bool, reversed(special_tokens_mask)))


def _truncate(flat: np.ndarray, full: np.ndarray, max_length: int, suffix: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids int32[sum], offsets int32[n + 1]) of sentences cut at max_length; their last `suffix` tokens stay.

    flat: int32[sum(full)], the sentences end to end. full: int32[n], their lengths.
    """
    kept = np.minimum(full, max_length)
    offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int32)
    begins = np.cumsum(full) - full
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], kept)
    to_end = np.repeat(kept, kept) - place
    source = np.where(to_end <= suffix, np.repeat(full, kept) - to_end, place) + np.repeat(begins, kept)
    return flat[source], offsets


def text_hashes(texts: Sequence[str]) -> np.ndarray:
    """Return uint64[n], BLAKE2b of the UTF-8 bytes."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)
