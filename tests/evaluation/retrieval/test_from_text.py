"""Test the tasks made from text without labels: which texts should find which, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from simcse_jax.evaluation.retrieval.data import Retrieval
from simcse_jax.evaluation.retrieval.from_text import PAIRS, from_rows, halve, load_text
from simcse_jax.evaluation.retrieval.task import rank
from simcse_jax.system.errors import UserError


def _found(task: Retrieval) -> dict[str, set[str]]:
    """Return the texts of the relevant documents by the text of the query."""
    return {task.queries[q]: {task.documents[d] for d in own} for q, own in task.relevant.items()}


def _write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_neighbours_in_documents(tmp_path: Path) -> None:
    task = load_text(_write(tmp_path / "a.txt", "One.\nTwo.\nThree.\n\nTwo.\nFour.\n\nAlone.\n"))
    assert _found(task) == {
        "One.": {"Two."},
        "Two.": {"One.", "Three.", "Four."},
        "Three.": {"Two."},
        "Four.": {"Two."},
    }
    assert set(task.documents.values()) == {"One.", "Two.", "Three.", "Four.", "Alone."}
    assert task.drops_self
    assert "beside it in its document" in task.note
    assert "same text only" in task.note


def test_a_query_does_not_find_its_own_text_among_the_documents() -> None:
    rows = [("one", "two"), ("two", "four", "three"), ("five", "five"), ("four", "two"), ("three", "one")]
    task = from_rows("made", rows, PAIRS)
    assert _found(task) == {"one": {"two"}, "two": {"four"}, "four": {"two"}, "three": {"one"}}
    assert set(task.documents.values()) == {"one", "two", "three", "four", "five"}
    assert list(task.documents) == sorted(task.documents)
    degrees = {"three": -40, "one": 0, "two": 30, "four": 50, "five": 180}  # each nearest to what it should find
    angles = {text: np.deg2rad(degree) for text, degree in degrees.items()}
    ranking = rank(lambda texts: np.array([(np.cos(angles[text]), np.sin(angles[text])) for text in texts]), task)
    assert (ranking.gains[:, 0] == 1).all()
    for words in ("two equal texts, left out: 1", "left out of their own ranking: 4"):
        assert words in task.note
    with pytest.raises(UserError, match="nothing to find"):
        from_rows("made", [("one", "one")], PAIRS)
    apart = from_rows("made", [("one", "two")], PAIRS)
    assert not apart.drops_self
    assert "left out" not in apart.note


def test_halves_of_texts(tmp_path: Path) -> None:
    assert halve("One two. Three four five. Six seven eight nine.") == (
        "One two. Three four five.",
        "Six seven eight nine.",
    )
    assert halve("a b c d e f g") == ("a b c", "d e f g") or halve("a b c d e f g") == ("a b c d", "e f g")
    assert halve("a b c d e") is None
    assert halve("One. two three four five six seven")[0] != "One."  # type: ignore[index]
    lines = "The cat sat on the mat. It slept there all day.\nshort\nSome birds sing early. Others sing at night.\n"
    task = load_text(_write(tmp_path / "a.txt", lines))
    assert _found(task) == {
        "The cat sat on the mat.": {"It slept there all day."},
        "Some birds sing early.": {"Others sing at night."},
    }
    assert "1 texts of fewer than 6 words are left out" in task.note
    assert task.split == "made: halves"


def test_titles_and_bodies(tmp_path: Path) -> None:
    source = _write(
        tmp_path / "a.csv", "id,Title,body\n1,Cats,They sleep.\n2,Birds,They sing.\n3,Cats,They purr.\n4,,x\n"
    )
    expected = {"Cats": {"They sleep.", "They purr."}, "Birds": {"They sing."}}
    assert _found(load_text(source)) == expected
    renamed = _write(tmp_path / "b.csv", Path(source).read_text().replace("Title,body", "name,words"))
    assert _found(load_text(f"{renamed}:title=name,body=words")) == expected


def test_a_part_is_chosen_by_its_text(tmp_path: Path) -> None:
    """The same part wherever the lines stand."""
    documents = [f"First of {n}.\nSecond of {n}.\nThird of {n}." for n in range(200)]
    one = load_text(_write(tmp_path / "a.txt", "\n\n".join(documents)) + ":most=60")
    two = load_text(_write(tmp_path / "b.txt", "\n\n".join(documents[::-1])) + ":most=60")
    assert 60 <= len(one.documents) <= 62
    assert _found(one) == _found(two)
    assert len({text[-5:] for text in one.documents.values()}) == 20


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.txt", "One.\n\nTwo.\n", "", "no document has two different sentences"),
        ("a.txt", "a b c\nd e f\n", "", "0 texts have 6 words"),
        ("a.txt", "One.\nTwo.\n", ":by=thirds", "by=thirds must be one of neighbours"),
        ("a.csv", "title,body\na,b\nc,d\n", ":by=neighbours", r"needs a \.txt"),
        ("a.csv", "name,words\na,b\nc,d\n", ":by=titles", "(?s)no column 'title'.*title=COLUMN"),
        ("a.txt", "One.\nTwo.\n", ":most=1", "most=1 must be"),
        ("a.txt", "One.\nTwo.\n", ":title=x", "no column|no effect|needs"),
        ("a.csv", "title,body\na,b\nc,d\n", ":column=body,by=titles", "column= has no effect with by=titles"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path: Path, name: str, text: str, options: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_text(_write(tmp_path / name, text) + options)
