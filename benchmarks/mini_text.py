"""Write the text that models/mini learned from: short sentences, each once, and none that a test set holds.

    python -m benchmarks.mini_text --wiki=wiki_docs.txt.xz --nli=nli_triplets.csv --without=SentEval/data/downstream \
        --out=mini_text

--out becomes a folder: wiki.txt has the sentences of Wikipedia of 4 to 14 words, nli.txt the texts of all three columns
of the NLI triplets. What is a line, or a cell between tabs, of any file below --without is left out; case, spaces and
punctuation do not count.
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


def wiki_texts(path: str) -> Iterator[str]:
    """Yield the short sentences of Wikipedia."""
    return (line.strip() for line in text_lines(Path(path), path) if len(line.split()) in WORDS)


def nli_texts(path: str) -> Iterator[str]:
    """Yield the texts of the triplets."""
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield from (" ".join(row[column].split()) for column in COLUMNS if row[column].strip())


def write_new(texts: Iterable[str], seen: set[tuple[str, ...]], tests: set[tuple[str, ...]], path: Path) -> None:
    """Write each text that is neither seen nor in the tests, and print how many there are; those become seen."""
    kept = left_out = 0
    with open(path, "w", encoding="utf-8") as file:
        for text in texts:
            words = words_of(text)
            if words not in seen:
                seen.add(words)
                left_out += words in tests
                if words not in tests:
                    kept += 1
                    print(text, file=file)
    print(f"{path}: {kept:,} texts; {left_out:,} left out, which tests hold")


def main() -> int:
    """Write both files."""
    if not all((FLAGS.wiki, FLAGS.nli, FLAGS.without, FLAGS.out)):
        raise UserError("--wiki, --nli, --without and --out are needed.")
    out = Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    tests = set(map(words_of, test_texts(Path(FLAGS.without))))
    seen: set[tuple[str, ...]] = set()
    write_new(nli_texts(FLAGS.nli), seen, tests, out / "nli.txt")
    write_new(wiki_texts(FLAGS.wiki), seen, tests, out / "wiki.txt")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("wiki", "", "A text file of sentences, one a line; .xz and .gz are read.")
    flags.DEFINE_string("nli", "", "A .csv of sent0, sent1, hard_neg.")
    flags.DEFINE_string("without", "", "The folder of the tests whose texts are left out.")
    flags.DEFINE_string("out", "", "The folder to write.")
    cli.run(main)
