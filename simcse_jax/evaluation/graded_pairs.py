"""Read graded pairs, two sentences with a gold score, from a user's file, SentEval's or the demo."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from simcse_jax.data import demo
from simcse_jax.data.delimited import is_list
from simcse_jax.data.lines import text_lines
from simcse_jax.data.readers import read_records
from simcse_jax.data.rows import SPLITS
from simcse_jax.data.scores import has_decimal_comma, parse_score, with_commas
from simcse_jax.data.tables import is_number
from simcse_jax.evaluation.options import split_options
from simcse_jax.evaluation.senteval import senteval_folder
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import DATASET_PREFIX, dataset_file
from simcse_jax.system.mirror import local_path

# The file of STS-B's dev pairs, and where it is in folders with SentEval's layout.
STSB_DEV = "sts-dev.csv"
STSB_FOLDERS = ("", "STSBenchmark", *(f"{above}STS/STSBenchmark" for above in ("", "downstream/", "data/downstream/")))

# The names of columns in headers, in lower case: ours, and those of sentence-transformers, SICK, QQP and MRPC.
NAMES = {
    "score": [
        "score",
        "similarity_score",
        "relatedness_score",
        "similarity",
        "label",
        "gold",
        "is_duplicate",
        "quality",
    ],
    "sentence1": ["sentence1", "sentence_1", "sentence_a", "sent0", "text1", "text_a", "question1", "#1 string"],
    "sentence2": ["sentence2", "sentence_2", "sentence_b", "sent1", "text2", "text_b", "question2", "#2 string"],
}
SPLIT = "split"
# By the number of columns: where score and sentences may be if no header says so. 7 to 9: SentEval's STS-B, which has
# genre, file, year, number, score, sentence, sentence, and in some lines licence and source.
PLACES = {3: ((0, 1, 2), (2, 0, 1))} | dict.fromkeys((7, 8, 9), ((4, 5, 6),))
TRUTH = {"true": 1.0, "false": 0.0}  # labels that count as scores in a column that is named
FEW = 20  # examples below which a score, and a difference between two, say little
COUNTING = 4  # rows from which numbers that grow by 1 are line numbers, not scores

SOURCES = "a file of score, sentence, sentence; a folder with sts-dev.csv; hf://datasets/OWNER/NAME/FILE; demo:dev"

Lines = list[tuple[int, list[str]]]  # the line number in the file and the cells of each row


@dataclasses.dataclass(frozen=True)
class GradedPairs:
    """Hold pairs of sentences with a gold score each, on any scale: only the order of the scores matters."""

    name: str  # their source, for tables and messages
    gold: np.ndarray  # float64[n]
    first: list[str]
    second: list[str]

    @property
    def note(self) -> str:
        """Return a remark on pairs that are too few to say much; "" for others."""
        count = len(self.gold)
        return f"only {count} pairs, which say little (hundreds are reliable)" if count < FEW else ""

    @property
    def fingerprint(self) -> str:
        """Hex digest of the scores and sentences, independent of the file."""
        digest = hashlib.blake2b(self.gold.tobytes(), digest_size=16)
        for text in (*self.first, *self.second):
            digest.update(text.encode("utf-8") + b"\0")
        return digest.hexdigest()


def load_graded_pairs(source: str) -> GradedPairs:
    """Return the pairs at `source`; UserError unless there are two or more, with finite scores that differ.

    source: a file whose header names the columns (as in NAMES, or as given by options), or of three columns: score,
    sentence, sentence, or sentence, sentence, score; one of SentEval's sts-*.csv; a folder or .tar in SentEval's layout
    (its STS-B dev pairs); `hf://datasets/OWNER/NAME[@REVISION]/FILE`; `demo:dev` or `demo:test`. Options follow a
    file's name: `FILE:score=COLUMN,sentence1=COLUMN,sentence2=COLUMN,split=VALUE`, with columns by name or number from
    1; only the rows of that split are read. Cells such as `None` and `NA` are text. Scores are numbers, or True and
    False in a column that is named; a blank one is refused.
    """
    if source.startswith("demo:"):
        return _demo_pairs(source)
    place, options = split_options(source, (*NAMES, SPLIT))
    path = dataset_file(place) if place.startswith(DATASET_PREFIX) else local_path(place)
    if path.suffix == ".tar" and path.is_file():
        path = senteval_folder(str(path)) / "STS"
    if path.is_dir():
        places = [path / folder / STSB_DEV for folder in STSB_FOLDERS]
        path = next((file for file in places if file.is_file()), path)
        if path.is_dir():
            raise UserError(f"{source} has no STS-B dev pairs (looked for {STSB_FOLDERS[1]}/{STSB_DEV}).")
    if not path.exists():
        raise UserError(f"The graded pairs {source!r} do not exist (relative to {Path.cwd()}).\nGive {SOURCES}.")
    return _to_pairs(source, place, _read_table(path, source), options)


def _demo_pairs(source: str) -> GradedPairs:
    split = source.removeprefix("demo:")
    if split not in ("dev", "test"):
        raise UserError(f"Unknown graded pairs {source!r}; the generated ones are demo:dev and demo:test.")
    gold, first, second = zip(*demo.graded_pairs(split=split), strict=True)
    return GradedPairs(source, np.array(gold, np.float64), list(first), list(second))


def _read_table(path: Path, name: str) -> Lines:
    """Return the rows of a file that are not blank; SentEval's .csv are cut at tabs, and quotes in them are text."""
    if path.suffix.lower() == ".csv":
        lines = [(number, line.rstrip("\r\n")) for number, line in enumerate(text_lines(path, name), 1) if line.strip()]
        if lines and lines[0][1].count("\t") >= 2:
            return [(number, line.split("\t")) for number, line in lines]
    return [(number, [_as_text(cell) for cell in cells]) for number, cells in read_records(path, name)]


def _as_text(cell: Any) -> str:
    return "" if cell is None else str(int(cell) if isinstance(cell, bool) else cell)


def _to_pairs(source: str, place: str, table: Lines, options: dict[str, str]) -> GradedPairs:
    """Return the pairs of a table. place: the source without its options, for messages."""
    if not table:
        raise UserError(f"{source} is empty. Give {SOURCES}.")
    columns = _find_columns(place, table, options)
    if _is_header(table[0][1][columns["score"]]):
        table = _rows_of_split(place, table[0][1], table[1:], options)
    elif SPLIT in options:
        raise UserError(f"{source}: the file has no header, so no column split. Leave out {SPLIT}=, or add a header.")
    gold, first, second = [], [], []
    for line, cells in table:
        if len(cells) <= max(columns.values()):
            raise UserError(f"{place}, line {line}: {len(cells)} columns, at least {max(columns.values()) + 1} needed.")
        score = cells[columns["score"]]
        gold.append(TRUTH[score.strip().lower()] if score.strip().lower() in TRUTH else parse_score(place, line, score))
        first.append(cells[columns["sentence1"]])
        second.append(cells[columns["sentence2"]])
        if not (first[-1].strip() and second[-1].strip()):
            raise UserError(f"{place}, line {line}: a sentence is blank. Write it, or remove the line.")
        if listed := next(filter(is_list, (first[-1], second[-1])), None):
            raise UserError(f"{place}, line {line}: {listed:.60} is a list. Write a line for each pair of sentences.")
    if len(gold) < 2:
        raise UserError(f"{source}: {len(gold)} pair(s); a correlation needs at least 2, and hundreds to be reliable.")
    if min(gold) == max(gold):
        raise UserError(f"{source}: all {len(gold)} scores are {gold[0]:g}; a correlation needs scores that differ.")
    for role, texts in (("sentence1", first), ("sentence2", second)):
        if all(map(is_number, texts)):
            raise UserError(f"{source}: every {role} is a number, such as {texts[0]}. {_advice(place)}")
    if "score" not in options and len(gold) >= COUNTING and set(np.diff(gold)) == {1}:
        raise UserError(f"{source}: the scores {gold[0]:g}, {gold[1]:g}, ... are line numbers. {_advice(place)}")
    return GradedPairs(source, np.array(gold, np.float64), first, second)


def _is_header(cell: str) -> bool:
    """Return whether what stands in the first row above the scores is their name."""
    return bool(cell.strip()) and not is_number(cell) and cell.strip().lower() not in TRUTH


def _find_columns(place: str, table: Lines, options: dict[str, str]) -> dict[str, int]:
    """Return the columns of "score", "sentence1" and "sentence2"; UserError where they would have to be guessed."""
    line, head = table[0]
    names = [cell.strip().lower() for cell in head]
    listed = ", ".join(f"{number} {cell!r:.40}" for number, cell in enumerate(head, 1))
    found = {}
    for role, known in NAMES.items():
        given = options.get(role, "").lower()
        column = next((names.index(name) for name in ([given] if given else known) if name in names), None)
        if column is None and given.isdigit() and 1 <= int(given) <= len(head):
            column = int(given) - 1
        if column is not None:
            found[role] = column
        elif given:
            raise UserError(f"{place}, line {line}: there is no column {given!r}; the columns: {listed}.")
    if len(found) == len(NAMES):
        return found
    for columns in PLACES.get(len(head), ()):
        whole = [cells for _, cells in table if len(cells) > max(columns)]
        examples = whole[1:] or whole  # the first may be a header
        mostly_numbers = [2 * sum(is_number(cells[c]) for cells in examples) >= len(examples) for c in columns]
        if mostly_numbers == [True, False, False] and not set(options) & set(NAMES):
            return dict(zip(NAMES, columns, strict=True))
    missing = ", ".join(role for role in NAMES if role not in found)
    if place.lower().endswith(".csv") and any(";" in cell or has_decimal_comma(cell) for cell in head):
        listed += f".\nIf ';' is between the columns: {with_commas(place, has_header=False)}"
    raise UserError(
        f"{place}, line {line}: which columns are {missing}? Neither a header nor three columns with one of numbers "
        f"say so.\nThe columns: {listed}. {_advice(place)}"
    )


def _advice(place: str) -> str:
    return f"Name the columns, by name or number: {place}:score=COLUMN,sentence1=COLUMN,sentence2=COLUMN."


def _rows_of_split(place: str, head: list[str], rows: Lines, options: dict[str, str]) -> Lines:
    """Return the rows of the split that the options name; UserError where the file has several and none is named."""
    names, wanted = [cell.strip().lower() for cell in head], options.get(SPLIT)
    column = names.index(SPLIT) if SPLIT in names else len(names)
    found = list(dict.fromkeys(cells[column] for _, cells in rows if column < len(cells)))
    spellings = next((names for names in SPLITS.values() if wanted in names), {wanted})
    chosen = spellings.intersection(found)
    if not chosen and (wanted or len(found) > 1):
        unknown = f"There is no split {wanted!r}. " if wanted else ""
        best = next((name for name in found if name not in SPLITS["train"]), "")
        choice = f"Choose one: {place}:{SPLIT}={best or found[0]}" if found else "It has no column split"
        raise UserError(f"{unknown}{place} has rows of the splits {', '.join(found) or 'none'}. {choice}.")
    return [(line, cells) for line, cells in rows if not wanted or column >= len(cells) or cells[column] in chosen]
