"""The labelled texts of SentEval's transfer tasks, read from its files."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from simcse_jax.evaluation.senteval import read_lines
from simcse_jax.system.errors import UserError

# A file of each class, in the order of the labels' appearance: those labelled 1 first. SentEval reads them as latin-1.
CLASS_FILES: dict[str, tuple[str, str]] = {
    "MR": ("MR/rt-polarity.pos", "MR/rt-polarity.neg"),
    "CR": ("CR/custrev.pos", "CR/custrev.neg"),
    "SUBJ": ("SUBJ/subj.objective", "SUBJ/subj.subjective"),
    "MPQA": ("MPQA/mpqa.pos", "MPQA/mpqa.neg"),
}
# A file of each split.
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
    """Texts, or pairs of texts, with a class each."""

    texts: tuple[list[str], ...]  # one list of n texts; of pairs two
    labels: np.ndarray  # int64[n], indices into `classes`
    classes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Hex digest of the labels and texts; not of where they lie."""
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
    """A task's examples by split; "" where SentEval has but one. folder is `senteval_folder`'s.

    As in SentEval, white space in a text is one space, nothing else is changed, and a blank line of a file that holds
    the texts of one class is an example too. UserError for a missing file, a malformed line (named), an empty class.
    """
    if task in CLASS_FILES:
        return {"": _of_classes(folder, CLASS_FILES[task])}
    found = {}
    for split, name in SPLIT_FILES[task].items():
        path = folder / name
        rows, classes = READERS[task](path), TREC_CLASSES if task == "TREC" else BINARY
        if not rows:
            raise UserError(f"{path} holds no example. Fetch it again.")
        texts = tuple(list(column) for column in zip(*(texts for texts, _ in rows), strict=True))
        found[split] = Labelled(texts, np.array([label for _, label in rows], np.int64), classes)
        missing = [name for name, count in found[split].counts.items() if not count]
        if missing and split == "train":  # elsewhere a class that is missing is none that has to be learnt
            raise UserError(f"{path} holds no example of the class {', '.join(missing)}. Fetch it again.")
    return found


def _of_classes(folder: Path, names: tuple[str, str]) -> Labelled:
    """Two files of texts, one a line: those labelled 1, then those labelled 0."""
    parts = []
    for name in names:
        texts = [_spaced(line) for line in read_lines(folder / name, "latin-1")]
        if not texts:
            raise UserError(f"{folder / name} holds no example. Fetch it again.")
        parts.append(texts)
    labels = np.repeat(np.array([1, 0], np.int64), [len(part) for part in parts])
    first, second = (Path(name).name for name in names)
    return Labelled((parts[0] + parts[1],), labels, (second, first))


def _read_sst(path: Path) -> list[Row]:
    """Lines of a sentence, a tab, and 0 or 1."""
    rows: list[Row] = []
    for number, line in enumerate(read_lines(path), 1):
        cells = line.split("\t")
        if len(cells) != 2 or not cells[0].strip() or cells[1].strip() not in BINARY:
            raise _malformed(path, number, line, "a sentence, a tab and the label 0 or 1 are needed")
        rows.append(((_spaced(cells[0]),), int(cells[1])))
    return rows


def _read_trec(path: Path) -> list[Row]:
    """Lines such as `NUM:dist How far is it ?`; the class is what stands before the colon."""
    rows: list[Row] = []
    for number, line in enumerate(read_lines(path, "latin-1"), 1):
        label, _, question = line.strip().partition(" ")
        coarse, _, fine = label.partition(":")
        if coarse not in TREC_CLASSES or not fine or not question.strip():
            needed = f"COARSE:fine and a question are needed, COARSE being one of {', '.join(TREC_CLASSES)}"
            raise _malformed(path, number, line, needed)
        rows.append(((_spaced(question),), TREC_CLASSES.index(coarse)))
    return rows


def _read_mrpc(path: Path) -> list[Row]:
    """A header, then lines of label, two ids and two sentences, with tabs between; quotes are text."""
    rows: list[Row] = []
    for number, line in enumerate(read_lines(path), 1):
        cells = line.split("\t")
        if len(cells) != MRPC_COLUMNS:
            needed = f"{MRPC_COLUMNS} columns with tabs between are needed, not {len(cells)}"
            raise _malformed(path, number, line, needed)
        if number == 1:
            if cells[0] != MRPC_HEAD:
                raise _malformed(path, number, line, f"the header, which begins with {MRPC_HEAD}, is needed")
            continue
        if cells[0] not in BINARY or not all(cell.strip() for cell in cells[3:]):
            raise _malformed(path, number, line, "a label 0 or 1, two ids and two sentences are needed")
        rows.append(((_spaced(cells[3]), _spaced(cells[4])), int(cells[0])))
    return rows


READERS: dict[str, Callable[[Path], Sequence[Row]]] = {"SST2": _read_sst, "TREC": _read_trec, "MRPC": _read_mrpc}


def _spaced(text: str) -> str:
    """The words with one space between: SentEval hands out lists of words, which its users join."""
    return " ".join(text.split())


def _malformed(path: Path, number: int, line: str, needed: str) -> UserError:
    return UserError(f"{path}, line {number}: {needed}; got {line!r:.100}. Fetch the file again.")
