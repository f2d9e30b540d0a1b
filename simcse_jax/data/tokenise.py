"""Tokenise tables of text into an Arrow file of token ids, lengths and hashes, with a report."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simcse_jax.data.rows import RowCounts, read_rows
from simcse_jax.data.scores import ScoreColumn
from simcse_jax.data.tables import TextTable
from simcse_jax.system.errors import UserError
from simcse_jax.system.progress import progress_bar
from simcse_jax.system.whole_file import checksum

if TYPE_CHECKING:
    import pyarrow as pa

CACHE_FORMAT = 2  # raised by every change of what is read or written
FINGERPRINT_FORMAT = 1  # of `_fingerprint`, by which old run folders know their data
_BLOCK = 2_000  # rows tokenised at a time: enough for all cores, few enough for long documents
_EDGES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


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


def build(
    folder: Path,
    tables: Sequence[TextTable],
    chosen: Sequence[tuple[str, ...]],
    tokeniser: Tokeniser,
    split: str,
    named: bool,
    scores: ScoreColumn | None = None,
) -> None:
    """Write tokens.arrow and corpus.json into a folder; split, named, scores: see `rows.read_rows`."""
    import pyarrow as pa

    counts, path = RowCounts(), folder / "tokens.arrow"
    rows = read_rows(tables, chosen, counts, split, named, scores)
    width = len(chosen[0])
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, _schema(width, scores is not None)) as writer,
        progress_bar(None, what="tokenising", unit="rows") as bar,
    ):
        while block := list(itertools.islice(rows, _BLOCK)):
            writer.write_table(_tokenise(block, tokeniser, width, scores is not None))
            bar.update(len(block))
    tokens = open_tokens(path)
    if not tokens.num_rows:
        names = ", ".join(table.name for table in tables)
        raise UserError(
            f"{names}: no row is left: each has a cell that is empty, or in which the tokenizer finds nothing."
        )
    meta = _describe(tokens, tables, chosen, counts, tokeniser) | {"checksum": checksum(path)}
    (folder / "corpus.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False), encoding="utf-8")


def open_tokens(path: Path) -> "pa.Table":
    """Return the memory-mapped table in a tokens.arrow."""
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def _describe(
    tokens: "pa.Table",
    tables: Sequence[TextTable],
    chosen: Sequence[tuple[str, ...]],
    counts: RowCounts,
    tokeniser: Tokeniser,
) -> dict[str, Any]:
    """Return the content of corpus.json: the fingerprint and the fields of a CorpusReport."""
    width = len(chosen[0])
    is_text = all(table.is_text_file for table in tables)
    ignored = dict.fromkeys(
        name
        for table, names in zip(tables, chosen, strict=True)
        for name in (*table.columns, *table.other_columns)
        if name not in names
    )
    lengths = np.concatenate([column(tokens, f"full_{v}") for v in range(width)])
    missing, lengths = int(np.count_nonzero(lengths == 0)), lengths[lengths > 0]
    max_length, kept = tokeniser.max_length, np.minimum(lengths, tokeniser.max_length)
    unknown = sum(
        int(np.count_nonzero(chunk.flatten().to_numpy() == tokeniser.unknown))
        for v in range(width)
        for chunk in tokens.column(f"ids_{v}").chunks
    )
    hashes = np.stack([column(tokens, f"hash_{v}") for v in range(width)], axis=1)
    too_long = int(np.count_nonzero(lengths > max_length))
    report = {
        "columns": chosen[0],
        "ignored_columns": tuple(ignored),
        "examples": tokens.num_rows,
        "empties": counts.empties + counts.kept - tokens.num_rows,
        "other_splits": counts.other_splits,
        "missing": missing,
        "unknown_share": unknown / int((kept - tokeniser.special).sum()),
        "duplicates": tokens.num_rows - len(np.unique(hashes, axis=0)),
        "documents": counts.documents if is_text else 0,
        "max_length": max_length,
        "truncated": too_long,
        "truncated_share": too_long / len(lengths),
        "mean_length": float(lengths.mean()),
        "histogram": _histogram(lengths, max_length),
    }
    return {"fingerprint": _fingerprint(tokens, width, is_text), "has_documents": is_text, "report": report}


def _schema(width: int, has_scores: bool) -> "pa.Schema":
    import pyarrow as pa

    kinds = {"ids": pa.list_(pa.int32()), "full": pa.int32(), "hash": pa.uint64()}
    views = {f"{name}_{v}": kind for v in range(width) for name, kind in kinds.items()}
    return pa.schema({"document": pa.int32(), **views} | ({"score": pa.float32()} if has_scores else {}))


def _tokenise(
    rows: Sequence[tuple[int, tuple[Any, ...]]], tokeniser: Tokeniser, width: int, has_scores: bool
) -> "pa.Table":
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
    return pa.table(arrays, schema=_schema(width, has_scores)).filter(pa.array(is_kept))


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


def _histogram(lengths: np.ndarray, max_length: int) -> tuple[tuple[int, int], ...]:
    """Return ((longest length of the bin, texts), ...); max_length is an edge, the longest text ends the last bin."""
    longest = int(lengths.max())
    edges = [edge for edge in sorted({*_EDGES, max_length}) if edge < longest] + [longest]
    counts = np.bincount(np.searchsorted(edges, lengths), minlength=len(edges))
    return tuple((edge, int(count)) for edge, count in zip(edges, counts, strict=True))


def _fingerprint(tokens: "pa.Table", width: int, has_documents: bool) -> str:
    """Return a hex digest of token ids, lengths, texts and documents, independent of paths and formats."""
    digest = hashlib.blake2b(f"{FINGERPRINT_FORMAT} {width} {tokens.num_rows}".encode(), digest_size=16)
    for v in range(width):
        for name in (f"full_{v}", f"hash_{v}"):
            digest.update(column(tokens, name).tobytes())
        for chunk in tokens.column(f"ids_{v}").chunks:
            digest.update(chunk.flatten().to_numpy().tobytes())
    if has_documents:
        digest.update(column(tokens, "document").tobytes())
    if "score" in tokens.column_names:
        digest.update(column(tokens, "score").tobytes())
    return digest.hexdigest()


def column(table: "pa.Table", name: str) -> np.ndarray:
    """Return a column of numbers as one array."""
    return table.column(name).to_numpy()
