"""Read the labelled texts of the transfer tasks from SentEval's files."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from simcse_jax.evaluation.senteval import read_lines
from simcse_jax.system.errors import UserError

# The file of each class; first that of label 1. SentEval reads them as latin-1.
CLASS_FILES: dict[str, tuple[str, str]] = {
    "MR": ("MR/rt-polarity.pos", "MR/rt-polarity.neg"),
    "CR": ("CR/custrev.pos", "CR/custrev.neg"),
    "SUBJ": ("SUBJ/subj.objective", "SUBJ/subj.subjective"),
    "MPQA": ("MPQA/mpqa.pos", "MPQA/mpqa.neg"),
}
# The file of each split.
SPLIT_FILES: dict[str, dict[str, str]] = {
    "SST2": {
        "train": "SST/binary/sentiment-train",
        "dev": "SST/binary/sentiment-dev",
        "test": "SST/binary/sentiment-test",
    },
    "TREC": {"train": "TREC/train_5500.label", "test": "TREC/TREC_10.label"},
    "MRPC": {"train": "MRPC/msr_paraphrase_train.txt", "test": "MRPC/msr_paraphrase_test.txt"},
}
TASKS = (*CLASS_FILES, *SPLIT_FILES)

BINARY = ("0", "1")
TREC_CLASSES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
MRPC_COLUMNS = 5
MRPC_HEAD = "Quality"

Row = tuple[tuple[str, ...], int]  # the text or the two texts, and the label


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Hold texts, or pairs of texts, with a class each."""

    texts: tuple[list[str], ...]  # one list of n texts; for pairs, two lists
    labels: np.ndarray  # int64[n], indices into `classes`
    classes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Hex digest of the labels and texts, independent of the files."""
        digest = hashlib.blake2b(self.labels.tobytes(), digest_size=16)
        for texts in self.texts:
            for text in texts:
                digest.update(text.encode("utf-8") + b"\0")
        return digest.hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """The number of examples of each class."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, counts, strict=True)}


def load_labelled(folder: Path, task: str) -> dict[str, Labelled]:
    """Return a task's examples by split; the split is "" where SentEval has only one.

    folder: what `senteval_folder` returns. As in SentEval, white space within a text becomes one space, and a blank
    line in a file of one class is an example too. Raises UserError for a missing file, a malformed line (with its
    number) or an empty class.
    """
    if task in CLASS_FILES:
        return {"": _of_classes(folder, CLASS_FILES[task])}
    found = {}
    for split, name in SPLIT_FILES[task].items():
        path = folder / name
        rows, classes = READERS[task](path), TREC_CLASSES if task == "TREC" else BINARY
        if not rows:
            raise UserError(f"{path} has no example. Download it again.")
        texts = tuple(list(column) for column in zip(*(texts for texts, _ in rows), strict=True))
        found[split] = Labelled(texts, np.array([label for _, label in rows], np.int64), classes)
        missing = [name for name, count in found[split].counts.items() if not count]
        if missing and split == "train":  # a class may be missing from dev or test
            raise UserError(f"{path} has no example of the class {', '.join(missing)}. Download it again.")
    return found


def _of_classes(folder: Path, names: tuple[str, str]) -> Labelled:
    """Read two files with a text on each line: first label 1, then label 0."""
    parts = []
    for name in names:
        texts = [_single_spaced(line) for line in read_lines(folder / name, "latin-1")]
        if not texts:
            raise UserError(f"{folder / name} has no example. Download it again.")
        parts.append(texts)
    labels = np.repeat(np.array([1, 0], np.int64), [len(part) for part in parts])
    first, second = (Path(name).name for name in names)
    return Labelled((parts[0] + parts[1],), labels, (second, first))


def _read_sst(path: Path) -> list[Row]:
    """Read lines of a sentence, a tab, and 0 or 1."""
    rows: list[Row] = []
    for number, line in enumerate(read_lines(path), 1):
        cells = line.split("\t")
        if len(cells) != 2 or not cells[0].strip() or cells[1].strip() not in BINARY:
            raise _malformed(path, number, line, "a sentence, a tab and the label 0 or 1 are needed")
        rows.append(((_single_spaced(cells[0]),), int(cells[1])))
    return rows


def _read_trec(path: Path) -> list[Row]:
    """Read lines such as `NUM:dist How far is it ?`, whose class is before the colon."""
    rows: list[Row] = []
    for number, line in enumerate(read_lines(path, "latin-1"), 1):
        label, _, question = line.strip().partition(" ")
        coarse, _, fine = label.partition(":")
        if coarse not in TREC_CLASSES or not fine or not question.strip():
            needed = f"COARSE:fine and a question are needed, COARSE being one of {', '.join(TREC_CLASSES)}"
            raise _malformed(path, number, line, needed)
        rows.append(((_single_spaced(question),), TREC_CLASSES.index(coarse)))
    return rows


def _read_mrpc(path: Path) -> list[Row]:
    """Read a header, then lines of label, two ids and two sentences, separated by tabs; quotes are text."""
    rows: list[Row] = []
    for number, line in enumerate(read_lines(path), 1):
        cells = line.split("\t")
        if len(cells) != MRPC_COLUMNS:
            needed = f"{MRPC_COLUMNS} columns separated by tabs are needed, not {len(cells)}"
            raise _malformed(path, number, line, needed)
        if number == 1:
            if cells[0] != MRPC_HEAD:
                raise _malformed(path, number, line, f"the header is needed, which begins with {MRPC_HEAD}")
            continue
        if cells[0] not in BINARY or not all(cell.strip() for cell in cells[3:]):
            raise _malformed(path, number, line, "a label 0 or 1, two ids and two sentences are needed")
        rows.append(((_single_spaced(cells[3]), _single_spaced(cells[4])), int(cells[0])))
    return rows


READERS: dict[str, Callable[[Path], Sequence[Row]]] = {"SST2": _read_sst, "TREC": _read_trec, "MRPC": _read_mrpc}


def _single_spaced(text: str) -> str:
    """Return the words separated by one space: SentEval gives lists of words, which its users join."""
    return " ".join(text.split())


def _malformed(path: Path, number: int, line: str, needed: str) -> UserError:
    return UserError(f"{path}, line {number}: {needed}; got {line!r:.100}. Download the file again.")
