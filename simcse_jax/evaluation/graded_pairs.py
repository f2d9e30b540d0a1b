"""Read graded pairs, two sentences with a gold score, from a user's file, SentEval's or the demo."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import math
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from simcse_jax.data import demo
from simcse_jax.data.readers import csv_records, decode_lines
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import DATASET_PREFIX, dataset_file

STSB_DEV = "STSBenchmark/sts-dev.csv"  # the dev pairs in SentEval's folder and archive
SUFFIXES = (".tsv", ".csv", ".txt")

# SentEval's own files: genre, file, year, number, score, sentence, sentence, optionally licence and source.
SENTEVAL_COLUMNS = (4, 5, 6)
SENTEVAL_WIDTH = 7

# Header names of each column, in lower case; among them those of SICK, GLUE and sentence-transformers.
SCORE_NAMES = ("score", "similarity_score", "relatedness_score", "label", "gold")
FIRST_NAMES = ("sentence1", "sentence_1", "sentence_a", "sent0")
SECOND_NAMES = ("sentence2", "sentence_2", "sentence_b", "sent1")

FORMAT = "Each line needs a score and two sentences, or the header must name the columns score, sentence1, sentence2."

SOURCES = (
    "a .tsv or .csv of score, sentence, sentence; a folder with sts-dev.csv; hf://datasets/OWNER/NAME/FILE; demo:dev"
)

Row = tuple[int, list[str]]  # line number in the file, from 1, and cells


@dataclasses.dataclass(frozen=True)
class GradedPairs:
    """Hold pairs of sentences with a gold score each, on any scale: only the order of the scores matters."""

    name: str  # their source, for tables and messages
    gold: np.ndarray  # float64[n]
    first: list[str]
    second: list[str]

    @property
    def fingerprint(self) -> str:
        """Hex digest of the scores and sentences, independent of the file."""
        digest = hashlib.blake2b(self.gold.tobytes(), digest_size=16)
        for text in (*self.first, *self.second):
            digest.update(text.encode("utf-8") + b"\0")
        return digest.hexdigest()


def load_graded_pairs(source: str) -> GradedPairs:
    """Return the pairs at `source`; UserError unless there are two or more, with finite scores that differ.

    source: a .tsv or .csv of score, sentence, sentence, with or without a header (which may name the columns in any
    order); one of SentEval's sts-*.csv; a folder or .tar in SentEval's layout (its STS-B dev pairs);
    `hf://datasets/OWNER/NAME[@REVISION]/FILE`; `demo:dev` or `demo:test`. A .csv is quoted as in Python's csv module;
    tab-separated files have no quoting. Cells such as `None` and `NA` are text.
    """
    if source.startswith("demo:"):
        return _demo_pairs(source)
    path = dataset_file(source) if source.startswith(DATASET_PREFIX) else Path(source).expanduser()
    if path.is_dir():
        path = _stsb_dev(path)
    if not path.exists():
        raise UserError(f"The graded pairs {source!r} do not exist (relative to {Path.cwd()}).\nGive {SOURCES}.")
    suffix = path.suffix.lower()
    if suffix == ".tar":
        return _parse(source, _stsb_dev_in_archive(path), ".csv", Path(STSB_DEV))
    if suffix not in SUFFIXES:
        raise UserError(f"The graded pairs {source!r} end in {suffix!r}; known: {', '.join(SUFFIXES)}, .tar.")
    return _parse(source, path.read_bytes(), suffix, path)


def _demo_pairs(source: str) -> GradedPairs:
    split = source.removeprefix("demo:")
    if split not in ("dev", "test"):
        raise UserError(f"Unknown graded pairs {source!r}; the generated ones are demo:dev and demo:test.")
    gold, first, second = zip(*demo.graded_pairs(split=split), strict=True)
    return GradedPairs(source, np.array(gold, np.float64), list(first), list(second))


def _stsb_dev(folder: Path) -> Path:
    """Find STS-B's dev file in its own folder or in any folder above it in SentEval's layout."""
    for place in ("sts-dev.csv", STSB_DEV, f"STS/{STSB_DEV}", f"downstream/STS/{STSB_DEV}"):
        if (folder / place).is_file():
            return folder / place
    raise UserError(f"The folder {folder} has no STS-B dev pairs (looked for sts-dev.csv and {STSB_DEV}).")


def _stsb_dev_in_archive(path: Path) -> bytes:
    """Read STS-B's dev file from an archive with SentEval's layout, at any level."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and f"/{member.name}".endswith(f"/{STSB_DEV}"):
                    content = archive.extractfile(member)
                    assert content is not None  # isfile() above
                    return content.read()
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path} is not a readable tar archive: {error}. Download it again.") from error
    raise UserError(f"The archive {path} has no member {STSB_DEV}; it should have SentEval's layout.")


def _parse(name: str, content: bytes, suffix: str, path: Path) -> GradedPairs:
    text = "".join(decode_lines(io.BytesIO(content), name, path))
    rows = _rows(name, text, suffix)
    head = next(rows, None)
    if head is None:
        raise UserError(f"{name} is empty. {FORMAT}")
    columns, is_header = _columns(name, head)
    gold, first, second = [], [], []
    for line, cells in rows if is_header else itertools.chain([head], rows):
        if len(cells) <= max(columns):
            raise UserError(f"{name}, line {line}: {len(cells)} columns, at least {max(columns) + 1} needed. {FORMAT}")
        score, *sentences = (cells[column] for column in columns)
        gold.append(parse_score(name, line, score))
        if not all(sentence.strip() for sentence in sentences):
            raise UserError(f"{name}, line {line}: a sentence is blank. Write it, or remove the line.")
        first.append(sentences[0])
        second.append(sentences[1])
    if len(gold) < 2:
        raise UserError(f"{name} has {len(gold)} pair(s); a correlation needs at least 2, and hundreds to be reliable.")
    if min(gold) == max(gold):
        raise UserError(f"{name}: all {len(gold)} scores are {gold[0]:g}; a correlation needs scores that differ.")
    return GradedPairs(name, np.array(gold, np.float64), first, second)


def _rows(name: str, text: str, suffix: str) -> Iterator[Row]:
    """Yield the rows that are not blank. Only a .csv has quoting, unless it is tab-separated as SentEval's are."""
    if suffix != ".csv" or text.lstrip("\r\n").partition("\n")[0].count("\t") >= 2:
        # Not splitlines(), which also splits at characters that sentences of real sets contain (U+2028, U+0085).
        for line, raw in enumerate(text.split("\n"), 1):
            if raw.strip():
                yield line, raw.removesuffix("\r").split("\t")
        return
    for line, cells in csv_records(io.StringIO(text, newline=""), name):
        if any(cell.strip() for cell in cells):
            yield line, cells


def _columns(name: str, head: Row) -> tuple[tuple[int, ...], bool]:
    """Return the columns of score, first and second sentence, and whether the first row is a header."""
    line, cells = head
    if _is_number(cells[0]):
        return (0, 1, 2), False
    if len(cells) >= SENTEVAL_WIDTH and _is_number(cells[SENTEVAL_COLUMNS[0]]):
        return SENTEVAL_COLUMNS, False
    names = [cell.strip().lower() for cell in cells]
    found = [_first_of(wanted, names) for wanted in (SCORE_NAMES, FIRST_NAMES, SECOND_NAMES)]
    if any(column is not None for column in found[1:]):
        missing = [
            name for name, column in zip(("score", "sentence1", "sentence2"), found, strict=True) if column is None
        ]
        if missing:
            raise UserError(f"{name}, line {line}: the header {', '.join(cells)} lacks {', '.join(missing)}. {FORMAT}")
        return tuple(column for column in found if column is not None), True
    if not names[0]:  # such as the index column of pandas, whose numbers would be read as scores
        raise UserError(f"{name}, line {line}: the first column has no name and no score. {FORMAT}")
    return (0, 1, 2), True


def _first_of(wanted: Sequence[str], names: list[str]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def parse_score(name: str, line: int, cell: str) -> float:
    """Return the score in a cell; UserError with file and line when it is not a finite number."""
    if not _is_number(cell):
        raise UserError(f"{name}, line {line}: the score {cell!r:.60} is not a number. {FORMAT}")
    if not math.isfinite(float(cell)):
        raise UserError(f"{name}, line {line}: the score is {cell.strip()}; it must be finite, e.g. 3.5.")
    return float(cell)
