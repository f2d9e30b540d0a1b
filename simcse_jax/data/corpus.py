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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_jax.data.prompts import of_columns
from simcse_jax.data.rows import RowCounts, choose_columns, read_rows
from simcse_jax.data.scores import ScoreColumn
from simcse_jax.data.sources import open_tables
from simcse_jax.data.tables import TextTable, listed
from simcse_jax.data.token_files import BLOCK, CACHE_FORMAT, SHARD_BLOCKS, build, column, open_tokens, shards
from simcse_jax.data.tokenise import Tokeniser
from simcse_jax.data.vocabulary import unknown_id
from simcse_jax.system.cache import cache_folder
from simcse_jax.system.errors import Unreachable, UserError
from simcse_jax.system.whole_file import checksum, writing

if TYPE_CHECKING:
    import pyarrow as pa

STALE_S = 24 * 3600.0
MOST_UNKNOWN = 0.05  # share of unknown tokens above which a run warns


@dataclass(frozen=True)
class CorpusReport:
    """Hold counts of what was read and dropped; lengths are in tokens, special ones included, before truncation."""

    files: tuple[str, ...]
    columns: tuple[str, ...]
    ignored_columns: tuple[str, ...]
    examples: int  # rows kept
    empties: int  # rows dropped for an empty cell, blank lines of a .txt among them
    duplicates: int  # rows that repeat an earlier row exactly; kept
    documents: int  # of .txt files; 0 for others
    max_length: int
    truncated: int  # texts longer than max_length
    truncated_share: float  # of all texts
    mean_length: float
    histogram: tuple[tuple[int, int], ...]  # (longest length in this bin, texts); the last bin reaches the longest text
    other_splits: int  # rows left out as they are of another split
    missing: int  # hard negatives that rows lack
    unknown_share: float  # tokens that stand for what the vocabulary lacks, of all tokens of text
    from_cache: bool = False
    held_out: int = 0  # rows that are no part of training, as their texts are held out for evaluation

    def lines(self) -> list[str]:
        """Return printable lines: the counts, then a bar of the histogram a line."""
        kind = {1: "sentences", 2: "pairs"}.get(len(self.columns), "pairs with hard negatives")
        names = ", ".join(self.files[:3]) + (f" and {len(self.files) - 3} more" if len(self.files) > 3 else "")
        ignored = f"; ignored: {listed(self.ignored_columns)}" if self.ignored_columns else ""
        cached = " (tokenised earlier, from the cache)" if self.from_cache else ""
        documents = f" in {self.documents:,} documents" if self.documents > 1 else ""
        empty = "blank lines" if self.documents else "dropped for an empty cell"
        counts = [f"{empty}: {self.empties:,}", f"exact duplicates, kept: {self.duplicates:,}"]
        if self.other_splits:
            counts.append(f"left out, of other splits: {self.other_splits:,}")
        if self.missing:
            counts.append(f"missing hard negatives: {self.missing:,}")
        if self.held_out:
            counts.append(f"held out for evaluation, with all equal texts: {self.held_out:,}")
        out = [
            f"data: {self.examples:,} {kind}{documents} from {names}{cached}",
            f"  columns used: {listed(self.columns)} (as the file names them){ignored}",
            f"  {'; '.join(counts)}",
            f"  tokens a text: mean {self.mean_length:.1f}; longer than {self.max_length} and truncated: "
            f"{self.truncated:,} ({self.truncated_share:.1%}){self._other_lengths()}",
            f"  tokens that the vocabulary lacks ([UNK]): {self.unknown_share:.1%}",
        ]
        if self.unknown_share > MOST_UNKNOWN:
            out.append(
                f"  warning: above {MOST_UNKNOWN:.0%} of the text is unknown to this tokenizer, and lost. Use a model "
                "of the text's language (--config.model.name), or random weights with a tokenizer of their own "
                "(--config.model.init=random --config.model.tokenizer=train --config.model.vocab_size=8000)"
            )
        total = max(1, sum(count for _, count in self.histogram))
        most = max((count for _, count in self.histogram), default=1)
        low = 1
        for high, count in self.histogram:
            bar = "#" * round(40 * count / max(1, most))
            out.append(f"  {low:>6}-{high:<6} {count:>11,} {count / total:>6.1%} {bar}")
            low = high + 1
        return out

    def _other_lengths(self) -> str:
        """Return what other values of data.max_length would cut; "" where nothing is cut."""
        edges, texts = np.array(self.histogram).T
        longer = texts.sum() - texts.cumsum()
        above = [(edge, count) for edge, count in zip(edges, longer, strict=True) if edge > self.max_length and count]
        return "".join(f"; than {edge}: {count / texts.sum():.1%}" for edge, count in above[:3])


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
        partial = root / f"{key}.{BLOCK * SHARD_BLOCKS}.{socket.gethostname()}.partial"
        shutil.rmtree(root / key, ignore_errors=True)  # damaged, or it would have opened
        try:
            with writing(
                root, "Free some space, or set SIMCSE_CACHE to a folder elsewhere.", f"The tokenised data in {root}"
            ):
                partial.mkdir(exist_ok=True)  # left by a stopped start, if it is there: we hold the lock
                build(partial, tables, chosen, tokeniser, split, bool(columns), scores)
                os.replace(partial, root / key)
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, Unreachable):
                shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):  # a stop, or a store out of reach: whole shards are kept
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
