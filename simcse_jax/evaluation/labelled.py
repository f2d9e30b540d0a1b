"""Read the labelled texts of the transfer tasks from SentEval's files."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable
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


@dataclasses.dataclass(frozen=True)
class _Format:
    """Describe the files of a task with splits."""

    files: dict[str, str]  # by split
    line: str  # a regular expression of a whole line, with the groups `label`, `first` and for pairs `second`
    needed: str  # what a line must hold, in words
    classes: tuple[str, ...] = ("0", "1")
    encoding: str = "utf-8"
    header: str = ""  # how the first line begins, where it is none of the examples


FORMATS = {
    "SST2": _Format(
        {split: f"SST/binary/sentiment-{split}" for split in ("train", "dev", "test")},
        r"(?P<first>[^\t]*\S[^\t]*)\t *(?P<label>[01]) *",
        "a sentence, a tab and the label 0 or 1",
    ),
    "TREC": _Format(
        {"train": "TREC/train_5500.label", "test": "TREC/TREC_10.label"},
        r"\s*(?P<label>ABBR|DESC|ENTY|HUM|LOC|NUM):[^ ]+ (?P<first>.*\S.*)",
        "COARSE:fine, a space and a question, COARSE being one of ABBR, DESC, ENTY, HUM, LOC, NUM",
        ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"),
        encoding="latin-1",
    ),
    "MRPC": _Format(
        {split: f"MRPC/msr_paraphrase_{split}.txt" for split in ("train", "test")},
        r"(?P<label>[01])\t[^\t]*\t[^\t]*\t(?P<first>[^\t]*\S[^\t]*)\t(?P<second>[^\t]*\S[^\t]*)",
        "5 columns separated by tabs: the label 0 or 1, two ids and two sentences",
        header="Quality",
    ),
}
TASKS = (*CLASS_FILES, *FORMATS)


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
        parts = [_single_spaced(read_lines(folder / name, "latin-1")) for name in CLASS_FILES[task]]
        first, second = (Path(name).name for name in CLASS_FILES[task])
        labels = np.repeat(np.array([1, 0], np.int64), [len(part) for part in parts])
        found = {"": Labelled((parts[0] + parts[1],), labels, (second, first))}
    else:
        found = {split: _read_split(folder / name, FORMATS[task]) for split, name in FORMATS[task].files.items()}
    for split, part in found.items():
        missing = [name for name, count in part.counts.items() if not count]
        if missing and split in ("", "train"):  # a class may be missing from dev or test
            places = CLASS_FILES.get(task) or (FORMATS[task].files[split],)
            raise UserError(
                f"{', '.join(str(folder / name) for name in places)}: no example of the class {', '.join(missing)}. "
                "Download it again."
            )
    return found


def _read_split(path: Path, form: _Format) -> Labelled:
    """Read a file with an example on each line."""
    examples = []
    for number, line in enumerate(read_lines(path, form.encoding), 1):
        is_header = bool(form.header) and number == 1
        found = re.match(form.header, line) if is_header else re.fullmatch(form.line, line)
        if found is None:
            needed = f"a header that begins with {form.header}" if is_header else form.needed
            raise UserError(
                f"{path}, line {number}: it must hold {needed}; got {line!r:.100}. Download the file again."
            )
        if not is_header:
            examples.append(found.groupdict())
    if not examples:
        raise UserError(f"{path} has no example. Download it again.")
    labels = np.array([form.classes.index(example["label"]) for example in examples], np.int64)
    sides = [side for side in ("first", "second") if side in examples[0]]
    return Labelled(tuple(_single_spaced(e[side] for e in examples) for side in sides), labels, form.classes)


def _single_spaced(texts: Iterable[str]) -> list[str]:
    """Return the words of each text separated by one space: SentEval gives lists of words, which its users join."""
    return [" ".join(text.split()) for text in texts]
