"""Write and open the files of a tokenised corpus: shards of Arrow tables, and a description of the whole.

A shard holds `SHARD_ROWS` rows as they were read: a stopped start leaves its whole shards, and the next one goes on
after them. Memory holds a block of rows, and 8 bytes for each row while duplicates are counted.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_jax.data.rows import RowCounts, read_rows
from simcse_jax.data.scores import ScoreColumn
from simcse_jax.data.tables import TextTable
from simcse_jax.data.tokenise import Row, Tokeniser, schema_of, tokenise
from simcse_jax.system.errors import UserError
from simcse_jax.system.progress import Bar, progress_bar
from simcse_jax.system.whole_file import checksum, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

CACHE_FORMAT = 2  # raised by every change for which an earlier cache is wrong
FINGERPRINT_FORMAT = 1  # of `_fingerprint`, by which old run folders know their data
BLOCK = 2_000  # rows tokenised at a time: enough for all cores, few enough for long documents
SHARD_ROWS = 250 * BLOCK
_EDGES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def build(
    folder: Path,
    tables: Sequence[TextTable],
    chosen: Sequence[tuple[str, ...]],
    tokeniser: Tokeniser,
    split: str,
    named: bool,
    scores: ScoreColumn | None = None,
) -> None:
    """Write the shards that the folder lacks, and corpus.json; split, named, scores: see `rows.read_rows`."""
    import pyarrow as pa

    counts, width = RowCounts(), len(chosen[0])
    blocks = _blocks(read_rows(tables, chosen, counts, split, named, scores))
    left = len(shards(folder)) * SHARD_ROWS
    what = f"tokenising (an earlier start did {left:,})" if left else "tokenising"
    with progress_bar(None, what=what, unit="rows", done=left) as bar:
        _write_shards(folder, blocks, tokeniser, width, scores is not None, bar)
    try:
        tokens = open_tokens(folder)
    except pa.ArrowInvalid as error:
        raise UserError(f"What an earlier start left in {folder} is damaged, and was removed.\nStart again.") from error
    if not tokens.num_rows:
        names = ", ".join(table.name for table in tables)
        raise UserError(
            f"{names}: no row is left: each has a cell that is empty, or in which the tokenizer finds nothing."
        )
    meta = _describe(tokens, tables, chosen, counts, tokeniser) | {"checksum": checksum(*shards(folder))}
    (folder / "corpus.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False), encoding="utf-8")


def shards(folder: Path) -> list[Path]:
    """Return the whole shards in a folder, in order. Folders of earlier versions have a single tokens.arrow."""
    return sorted(folder.glob("tokens*.arrow"))


def open_tokens(folder: Path) -> "pa.Table":
    """Return the memory-mapped table of all shards in a folder; OSError if there is none."""
    import pyarrow as pa

    if not (paths := shards(folder)):
        raise FileNotFoundError(f"{folder} holds no tokens")
    return pa.concat_tables([pa.ipc.open_stream(pa.memory_map(str(path))).read_all() for path in paths])


def column(table: "pa.Table", name: str) -> np.ndarray:
    """Return a column of numbers as one array."""
    return table.column(name).to_numpy()


def _blocks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while block := list(itertools.islice(rows, BLOCK)):
        yield block


def _write_shards(
    folder: Path, blocks: Iterator[list[Row]], tokeniser: Tokeniser, width: int, has_scores: bool, bar: Bar
) -> None:
    """Write the shards that the folder lacks; of no block at all, one without rows."""
    import pyarrow as pa

    def write(path: Path, of_shard: Iterator[list[Row]]) -> None:
        """Write one shard."""
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema_of(width, has_scores)) as writer:
            for block in of_shard:
                # `tokenizers` uses all cores. To make arrays of one block while the next is tokenised was no faster.
                writer.write_table(tokenise(block, tokeniser, width, has_scores))
                bar.update(len(block))

    number = len(shards(folder))
    per_shard = SHARD_ROWS // BLOCK
    for _ in itertools.islice(blocks, number * per_shard):
        pass
    first = next(blocks, None)
    while first or not number:
        of_shard = itertools.chain([first] if first else [], itertools.islice(blocks, per_shard - 1))
        write_whole(folder / f"tokens-{number:05d}.arrow", functools.partial(write, of_shard=of_shard))
        number, first = number + 1, next(blocks, None)


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
    counted = _count_lengths(tokens, width)
    missing, texts = int(counted[0]), counted[1:]
    lengths = np.arange(1, len(counted))
    max_length, total = tokeniser.max_length, int(texts.sum())
    kept = int((texts * (np.minimum(lengths, max_length) - tokeniser.special)).sum())
    unknown = sum(
        int(np.count_nonzero(chunk.flatten().to_numpy() == tokeniser.unknown))
        for v in range(width)
        for chunk in tokens.column(f"ids_{v}").chunks
    )
    too_long = int(texts[max_length:].sum())
    report = {
        "columns": chosen[0],
        "ignored_columns": tuple(ignored),
        "examples": tokens.num_rows,
        "empties": counts.empties + counts.kept - tokens.num_rows,
        "other_splits": counts.other_splits,
        "missing": missing,
        "unknown_share": unknown / kept,
        "duplicates": tokens.num_rows - _count_distinct(tokens, width),
        "documents": counts.documents if is_text else 0,
        "max_length": max_length,
        "truncated": too_long,
        "truncated_share": too_long / total,
        "mean_length": int((texts * lengths).sum()) / total,
        "histogram": _histogram(texts, max_length),
    }
    return {"fingerprint": _fingerprint(tokens, width, is_text), "has_documents": is_text, "report": report}


def _count_lengths(tokens: "pa.Table", width: int) -> np.ndarray:
    """Return int64[longest + 1], how many texts have 0, 1, 2, ... tokens."""
    counts = np.zeros(1, np.int64)
    for v in range(width):
        for chunk in tokens.column(f"full_{v}").chunks:
            found = np.bincount(chunk.to_numpy(), minlength=len(counts))
            found[: len(counts)] += counts
            counts = found
    return counts


def _count_distinct(tokens: "pa.Table", width: int) -> int:
    """Return how many rows differ in the hashes of their texts."""
    keys = np.zeros(tokens.num_rows, np.uint64)
    for v in range(width):
        keys *= np.uint64(0x9E3779B97F4A7C15)  # odd, so no hash is lost
        first = 0
        for chunk in tokens.column(f"hash_{v}").chunks:
            keys[first : first + len(chunk)] += chunk.to_numpy()
            first += len(chunk)
    keys.sort()
    return 1 + int(np.count_nonzero(keys[1:] != keys[:-1]))


def _histogram(texts: np.ndarray, max_length: int) -> tuple[tuple[int, int], ...]:
    """Return ((longest length of the bin, texts), ...); max_length is an edge, the longest text ends the last bin.

    texts: int64[longest], how many texts have 1, 2, ... tokens.
    """
    longest = len(texts)
    edges = [edge for edge in sorted({*_EDGES, max_length}) if edge < longest] + [longest]
    return tuple((edge, int(part.sum())) for edge, part in zip(edges, np.split(texts, edges[:-1]), strict=True))


def _fingerprint(tokens: "pa.Table", width: int, has_documents: bool) -> str:
    """Return a hex digest of token ids, lengths, texts and documents, independent of paths, formats and shards."""
    digest = hashlib.blake2b(f"{FINGERPRINT_FORMAT} {width} {tokens.num_rows}".encode(), digest_size=16)
    names = [f"{kind}_{v}" for v in range(width) for kind in ("full", "hash", "ids")]
    names += ["document"] * has_documents + ["score"] * ("score" in tokens.column_names)
    for name in names:
        for chunk in tokens.column(name).chunks:
            digest.update((chunk.flatten() if name.startswith("ids") else chunk).to_numpy().tobytes())
    return digest.hexdigest()
