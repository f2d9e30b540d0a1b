"""Tokenise tables of text into an Arrow file of token ids, lengths and hashes, with a report."""

import contextlib
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_jax.data.readers import TextTable
from simcse_jax.data.sources import RowCounts, read_rows
from simcse_jax.system.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

CACHE_FORMAT = 1  # raised by every change of what is written below
_READ_ROWS = 10_000  # rows written at a time
_TOKENISE_ROWS = 2_000  # rows tokenised at a time: enough for all cores, few enough for long documents
_PROGRESS_ROWS = 50_000  # from here on it takes long enough for a progress bar
_EDGES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def build(
    folder: Path, tables: Sequence[TextTable], chosen: Sequence[tuple[str, ...]], backend: Any, max_length: int
) -> None:
    """Write tokens.arrow and corpus.json into a folder."""
    from datasets import Dataset

    counts = RowCounts()
    texts_file = folder / "texts.arrow"
    width = len(chosen[0])
    _write_texts(texts_file, read_rows(tables, chosen, counts), width)
    if counts.kept == 0:
        raise _nothing_left(tables)
    texts = Dataset.from_file(str(texts_file))
    with _progress_bar(len(texts) >= _PROGRESS_ROWS):
        texts.with_format("arrow").map(
            _tokenise_function(backend, max_length, width),
            batched=True,
            batch_size=_TOKENISE_ROWS,
            writer_batch_size=_READ_ROWS,
            remove_columns=texts.column_names,
            features=_token_features(width),
            cache_file_name=str(folder / "tokens.arrow"),
            load_from_cache_file=False,
            new_fingerprint=folder.name[:32],  # ours; datasets would pickle and hash the tokenizer
            desc="tokenising",
        )
    del texts
    texts_file.unlink()
    tokens = Dataset.from_file(str(folder / "tokens.arrow")).data.table
    if tokens.num_rows == 0:
        raise _nothing_left(tables)
    meta = _describe(tokens, tables, chosen, counts, max_length)
    meta["bytes"] = (folder / "tokens.arrow").stat().st_size
    (folder / "corpus.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False), encoding="utf-8")


def _nothing_left(tables: Sequence[TextTable]) -> UserError:
    names = ", ".join(table.name for table in tables)
    return UserError(
        f"{names}: no row is left: each has a cell that is empty, or in which the tokenizer finds nothing."
    )


def _describe(
    tokens: "pa.Table",
    tables: Sequence[TextTable],
    chosen: Sequence[tuple[str, ...]],
    counts: RowCounts,
    max_length: int,
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
    hashes = np.stack([column(tokens, f"hash_{v}") for v in range(width)], axis=1)
    too_long = int(np.count_nonzero(lengths > max_length))
    report = {
        "columns": chosen[0],
        "ignored_columns": tuple(ignored),
        "examples": tokens.num_rows,
        "empties": counts.empties + counts.kept - tokens.num_rows,
        "duplicates": tokens.num_rows - len(np.unique(_row_hashes(hashes))),
        "documents": counts.documents if is_text else 0,
        "max_length": max_length,
        "truncated": too_long,
        "truncated_share": too_long / len(lengths),
        "mean_length": float(lengths.mean()),
        "histogram": _histogram(lengths, max_length),
    }
    return {"fingerprint": _fingerprint(tokens, width, is_text), "has_documents": is_text, "report": report}


def _write_texts(path: Path, rows: Iterator[tuple[int, tuple[str, ...]]], width: int) -> None:
    import pyarrow as pa
    from datasets import Features, Value
    from datasets.arrow_writer import ArrowWriter

    names = [f"text_{v}" for v in range(width)]
    features = Features({"document": Value("int32"), **{name: Value("large_string") for name in names}})
    with ArrowWriter(path=str(path), features=features) as writer:
        while batch := list(itertools.islice(rows, _READ_ROWS)):
            columns = zip(*(cells for _, cells in batch), strict=True)
            arrays = {"document": pa.array([document for document, _ in batch], pa.int32())}
            arrays |= {name: pa.array(texts, pa.large_string()) for name, texts in zip(names, columns, strict=True)}
            writer.write_table(pa.table(arrays))
        writer.finalize()


def _token_features(width: int) -> Any:
    from datasets import Features, List, Value

    per_view = {"ids": List(Value("int32")), "full": Value("int32"), "hash": Value("uint64")}
    views = {f"{name}_{v}": feature for v in range(width) for name, feature in per_view.items()}
    return Features({"document": Value("int32"), **views})


def _tokenise_function(backend: Any, max_length: int, width: int) -> Callable[["pa.Table"], "pa.Table"]:
    """Return a function for `Dataset.map`: a table of texts to one of token ids, untruncated lengths and hashes."""
    import pyarrow as pa

    special = backend.num_special_tokens_to_add(False)

    def tokenise(batch: pa.Table) -> pa.Table:
        arrays: dict[str, pa.Array] = {"document": batch.column("document")}
        has_tokens = np.ones(batch.num_rows, bool)
        for v in range(width):
            texts = batch.column(f"text_{v}").to_pylist()
            encoded = backend.encode_batch_fast(texts)
            full = np.fromiter(map(len, encoded), np.int32, len(encoded))
            flat = np.fromiter(itertools.chain.from_iterable(e.ids for e in encoded), np.int32, int(full.sum()))
            suffix = _suffix(encoded[int(full.argmax())].special_tokens_mask)
            ids, offsets = _truncate(flat, full, max_length, suffix)
            arrays[f"ids_{v}"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids))
            arrays[f"full_{v}"] = pa.array(full)
            arrays[f"hash_{v}"] = pa.array(_text_hashes(texts))
            has_tokens &= full > special  # "\u200b" is no blank, yet a tokenizer may find nothing in it
        table = pa.table(arrays)
        return table if has_tokens.all() else table.filter(pa.array(has_tokens))

    return tokenise


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


def _text_hashes(texts: Sequence[str]) -> np.ndarray:
    """Return uint64[n], BLAKE2b of the UTF-8 bytes."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _row_hashes(hashes: np.ndarray) -> np.ndarray:
    """Return uint64[E] from uint64[E, V]; the order of the columns matters."""
    mixed = np.zeros(len(hashes), np.uint64)
    for v in range(hashes.shape[1]):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + hashes[:, v]
    return mixed


def _histogram(lengths: np.ndarray, max_length: int) -> tuple[tuple[int, int], ...]:
    """Return ((longest length of the bin, texts), ...); max_length is an edge, the longest text ends the last bin."""
    longest = int(lengths.max())
    edges = [edge for edge in sorted({*_EDGES, max_length}) if edge < longest] + [longest]
    counts = np.bincount(np.searchsorted(edges, lengths), minlength=len(edges))
    return tuple((edge, int(count)) for edge, count in zip(edges, counts, strict=True))


def _fingerprint(tokens: "pa.Table", width: int, has_documents: bool) -> str:
    """Return a hex digest of token ids, lengths, texts and documents, independent of paths and formats."""
    digest = hashlib.blake2b(f"{CACHE_FORMAT} {width} {tokens.num_rows}".encode(), digest_size=16)
    for v in range(width):
        for name in (f"full_{v}", f"hash_{v}"):
            digest.update(column(tokens, name).tobytes())
        for chunk in tokens.column(f"ids_{v}").chunks:
            digest.update(chunk.flatten().to_numpy().tobytes())
    if has_documents:
        digest.update(column(tokens, "document").tobytes())
    return digest.hexdigest()


def column(table: "pa.Table", name: str) -> np.ndarray:
    """Return a column of numbers as one array."""
    return table.column(name).to_numpy()


@contextlib.contextmanager
def _progress_bar(is_long: bool) -> Iterator[None]:
    """Show the progress bars of `datasets` within this context only for long work in a terminal."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not (is_long and sys.stderr.isatty()) and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()
