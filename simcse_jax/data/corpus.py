"""Load text files as a tokenised, cached, memory-mapped table with lengths and hashes.

Text is tokenised once: the result is in the cache under a key made of the files' content, the tokenizer, max_length and
the columns. It appears there by one rename. A stopped start leaves its whole shards, and the next one on this host goes
on after them. The cache may be deleted at any time.
"""

import hashlib
import itertools
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_jax.data.corpus_report import CorpusReport
from simcse_jax.data.prompts import of_columns
from simcse_jax.data.rows import RowCounts, choose_columns, read_rows
from simcse_jax.data.scores import ScoreColumn
from simcse_jax.data.sources import open_tables
from simcse_jax.data.tables import TextTable
from simcse_jax.data.token_files import CACHE_FORMAT, SHARD_ROWS, build, column, open_tokens, shards
from simcse_jax.data.tokenise import Tokeniser
from simcse_jax.data.vocabulary import unknown_id
from simcse_jax.system.cache import cache_folder
from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import checksum, writing

if TYPE_CHECKING:
    import pyarrow as pa

STALE_S = 24 * 3600.0  # age of a folder that no start is at work in any more


class Corpus:
    """Hold tokenised examples: E rows of V texts, in the order of the files.

    columns: names of the V text columns. lengths: int32[E, V] in tokens, special ones included, after truncation.
    hashes: uint64[E, V] of the text; equal text, equal hash. documents: int32[E], or None unless all files are .txt.
    scores: float32[E], or None without them. fingerprint: equal if and only if texts, documents, token ids and scores
    are equal, for any paths and formats.
    """

    def __init__(self, tokens: "pa.Table", fingerprint: str, report: CorpusReport, has_documents: bool):
        self.columns = report.columns
        self.fingerprint = fingerprint
        self.report = report
        width = len(report.columns)
        full = np.stack([column(tokens, f"full_{v}") for v in range(width)], axis=1)
        self.lengths: np.ndarray = np.minimum(full, report.max_length).astype(np.int32)
        self.hashes: np.ndarray = np.stack([column(tokens, f"hash_{v}") for v in range(width)], axis=1)
        self.scores: np.ndarray | None = column(tokens, "score") if "score" in tokens.column_names else None
        self.documents: np.ndarray | None = column(tokens, "document") if has_documents else None
        # One chunk of Arrow's list column is one flat memory-mapped array of ids with offsets; a row is a slice of it.
        self._chunks = [[_values(chunk) for chunk in tokens.column(f"ids_{v}").chunks] for v in range(width)]
        sizes = [len(chunk) for chunk in tokens.column("ids_0").chunks]
        self._chunk_ends = np.cumsum(sizes)
        self._starts = np.stack(
            [
                np.concatenate([chunk.offsets.to_numpy()[:-1] for chunk in tokens.column(f"ids_{v}").chunks])
                for v in range(width)
            ],
            axis=1,
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def token_ids(self, rows: np.ndarray) -> list[list[np.ndarray]]:
        """Return [n][V] int32 arrays, the token ids of those rows: read-only views of the memory-mapped file."""
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a corpus of {len(self)} examples")
        chunks = np.searchsorted(self._chunk_ends, rows, side="right").tolist()
        starts = self._starts[rows]
        ends = (starts + self.lengths[rows]).tolist()
        views = self._chunks
        return [
            [view[chunk][start:end] for view, start, end in zip(views, row_starts, row_ends, strict=True)]
            for chunk, row_starts, row_ends in zip(chunks, starts.tolist(), ends, strict=True)
        ]


def load_corpus(
    files: Sequence[str],
    tokenizer: Any,
    max_length: int,
    columns: Sequence[str] = (),
    cache_dir: str | os.PathLike[str] | None = None,
    split: str = "train",
    scores: ScoreColumn | None = None,
    prompts: Sequence[str] = (),
) -> Corpus:
    """Return the corpus in `files`, tokenised the first time and read from the cache later.

    files: see `sources.open_tables`. columns: see `rows.choose_columns`. cache_dir: $SIMCSE_CACHE, else
    ~/.cache/simcse_jax. split, scores: see `rows.read_rows`. prompts: see `prompts.of_columns`. Several processes may
    call this at once: one tokenises, the others wait for it.
    """
    tokeniser = Tokeniser(_untruncated(tokenizer), max_length, unknown_id(tokenizer))
    special = tokeniser.special
    if max_length <= special:
        raise UserError(
            f"data.max_length={max_length} leaves no room for text beside the {special} special tokens. "
            f"At least {special + 1}; the paper trains with 32."
        )
    tables = open_tables(files)
    if scores:
        for table in tables:
            scores.require_in(table)
    chosen = choose_columns(tables, columns)
    tokeniser = tokeniser._replace(prompts=of_columns(prompts, chosen[0]))
    _require_room(tokeniser)
    key = _cache_key(tables, chosen, tokeniser, split, bool(columns), scores)
    root = cache_folder("corpora", cache_dir)
    from filelock import FileLock

    with FileLock(root / f"{key}.lock"):
        corpus = _open_cached(root / key, tables)
        if corpus is not None:
            return corpus
        partial = root / f"{key}.{SHARD_ROWS}.{socket.gethostname()}.partial"
        shutil.rmtree(root / key, ignore_errors=True)  # damaged, or it would have opened
        try:
            with writing(
                root, "Free some space, or set SIMCSE_CACHE to a folder elsewhere.", f"The tokenised data in {root}"
            ):
                partial.mkdir(exist_ok=True)  # left by a stopped start, if it is there: we hold the lock
                build(partial, tables, chosen, tokeniser, split, bool(columns), scores)
                os.replace(partial, root / key)
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        except BaseException:  # a stop: whole shards are kept
            with suppress(OSError):
                partial.rmdir()
            raise
        _remove_stale(root, key)
        return _open(root / key, tables, from_cache=False)


def _remove_stale(root: Path, key: str) -> None:
    """Remove what stopped starts of other hosts, or of an earlier version, left at least a day ago.

    A younger folder may be of a host at work, where hosts share a cache on a file system without locks.
    """
    for folder in root.glob(f"{key}.*partial"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > STALE_S:
                shutil.rmtree(folder, ignore_errors=True)


def _require_room(tokeniser: Tokeniser) -> None:
    """Raise UserError where a prompt leaves no token for the text after it."""
    for prompt in tokeniser.prompts:
        taken = len(tokeniser.backend.encode(prompt))
        if taken >= tokeniser.max_length:
            raise UserError(
                f"data.prompts: {prompt!r} takes {taken} tokens, special ones included, and data.max_length = "
                f"{tokeniser.max_length} leaves none for the text after it.\nUse a shorter prompt, or "
                f"--config.data.max_length={2 * taken}."
            )


def read_sentences(files: Sequence[str], limit: int | None = None, columns: Sequence[str] = ()) -> Iterator[str]:
    """Yield at most `limit` texts of the training rows of `files`, row by row and column by column."""
    tables = open_tables(files)
    rows = read_rows(tables, choose_columns(tables, columns), RowCounts(), "train", bool(columns))
    return itertools.islice((text for _, cells in rows for text in cells if text.strip()), limit)


def _untruncated(tokenizer: Any) -> Any:
    """Return a copy of the fast tokenizer's `tokenizers.Tokenizer` that neither truncates nor pads."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def _cache_key(
    tables: Sequence[TextTable],
    chosen: Sequence[tuple[str, ...]],
    tokeniser: Tokeniser,
    split: str,
    named: bool,
    scores: ScoreColumn | None,
) -> str:
    """Return a hex digest of everything that decides the token ids."""
    import tokenizers

    keys = [table.key() for table in tables]
    parts = [CACHE_FORMAT, tokenizers.__version__, tokeniser.max_length, keys, chosen, tokeniser.unknown, split]
    if tokeniser.prompts:
        parts.append(["prompts", *tokeniser.prompts])
    if named:  # then rows are read that are refused otherwise
        parts.append("named")
    if scores:
        parts.append([scores.name, f"{scores.lowest} {scores.highest}"])
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16)
    digest.update(tokeniser.backend.to_str().encode())
    return digest.hexdigest()


def _open_cached(folder: Path, tables: Sequence[TextTable]) -> Corpus | None:
    """Return the corpus in that folder; None if there is none, or a damaged one."""
    import pyarrow as pa

    try:
        return _open(folder, tables, from_cache=True)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def _open(folder: Path, tables: Sequence[TextTable], from_cache: bool) -> Corpus:
    """Return the corpus in that folder, with the names that its files have now; ValueError if it is damaged."""
    meta = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    if checksum(*shards(folder)) != meta["checksum"]:
        raise ValueError(f"{folder} holds other tokens than were written")
    fields = {name: _tuples(value) for name, value in meta["report"].items()}
    report = CorpusReport(**fields, files=tuple(table.name for table in tables), from_cache=from_cache)
    return Corpus(open_tokens(folder), meta["fingerprint"], report, has_documents=meta["has_documents"])


def _tuples(value: Any) -> Any:
    """Return JSON's lists as tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _values(chunk: Any) -> np.ndarray:
    """Return int32, the flat ids of one chunk of lists, as a view of the file."""
    return chunk.values.to_numpy(zero_copy_only=True)
