"""Write the text that models/mini learned from: short sentences, each once, and none that a test set holds.

    python -m benchmarks.mini_text --wiki=wiki_docs.txt.xz --nli=nli_triplets.csv --without=SentEval/data/downstream \
        --out=mini.txt

Sentences of Wikipedia of 4 to 14 words, and all three columns of the NLI triplets. What is a line, or a cell between
tabs, of any file below --without is left out; case, spaces and punctuation do not count.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from absl import flags

from simcse_jax import cli
from simcse_jax.data.lines import text_lines
from simcse_jax.system.errors import UserError

FLAGS = flags.FLAGS
WORDS = range(4, 15)
COLUMNS = ("sent0", "sent1", "hard_neg")


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text, lower-cased, without punctuation: what makes two texts the same."""
    return tuple(re.findall(r"\w+", text.lower()))


def test_texts(folder: Path) -> Iterator[str]:
    """Yield every line and every cell between tabs of the files below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                yield line
                yield from line.split("\t")


def candidates(wiki: str, nli: str) -> Iterator[str]:
    """Yield the short sentences of Wikipedia, then the texts of the triplets."""
    for line in text_lines(Path(wiki), wiki):
        if len(line.split()) in WORDS:
            yield line.strip()
    with open(nli, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield from (" ".join(row[column].split()) for column in COLUMNS if row[column].strip())


def chosen(texts: Iterable[str], tests: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Yield each text once, and whether the tests hold it."""
    excluded = set(map(words_of, tests))
    seen: set[tuple[str, ...]] = set()
    for text in texts:
        words = words_of(text)
        if words not in seen:
            seen.add(words)
            yield text, words in excluded


def main() -> int:
    """Write --out and print how many texts there are."""
    if not all((FLAGS.wiki, FLAGS.nli, FLAGS.without, FLAGS.out)):
        raise UserError("--wiki, --nli, --without and --out are needed.")
    left_out = kept = 0
    with open(FLAGS.out, "w", encoding="utf-8") as file:
        for text, is_test in chosen(candidates(FLAGS.wiki, FLAGS.nli), test_texts(Path(FLAGS.without))):
            if is_test:
                left_out += 1
            else:
                kept += 1
                print(text, file=file)
    print(f"{kept:,} texts in {FLAGS.out}; {left_out:,} left out that are below {FLAGS.without}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("wiki", "", "A text file of sentences, one a line; .xz and .gz are read.")
    flags.DEFINE_string("nli", "", "A .csv of sent0, sent1, hard_neg.")
    flags.DEFINE_string("without", "", "The folder of the tests whose texts are left out.")
    flags.DEFINE_string("out", "", "The file to write.")
    cli.run(main)
