"""Prompts of columns: what is read of the recipe, tokenised, cached, told apart from texts, and pooled."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simcse_jax.data.batches import Batches, Layout
from simcse_jax.data.corpus import Corpus, load_corpus
from simcse_jax.data.examples import ColumnExamples, WithPrompts
from simcse_jax.data.prompts import of_columns, parse_prompts, prompt_length
from simcse_jax.data.tokenizer import load_tokenizer, train_wordpiece
from simcse_jax.system.errors import UserError

TEXTS = ["query: a man plays", "passage: a guitar", "one, two"]
ROWS = "sent0,sent1,hard_neg\na man,a guitar,\na guitar,a man,plays\n\u200b,a man,plays\nplays,\u200b,a man\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ()),
        ("query: ", ("query: ",)),
        ("query: ,passage: ", ("query: ", "passage: ")),
        (" query: ,", (" query: ", "")),
        ('"Given a question, find: ",passage: ', ("Given a question, find: ", "passage: ")),
        ('"Instruct: say ""yes""\nQuery: "', ('Instruct: say "yes"\nQuery: ',)),
    ],
)
def test_a_list_of_prompts(value: str, expected: tuple[str, ...]) -> None:
    assert parse_prompts(value) == expected


@pytest.mark.parametrize("wrong", [",", ",,", '"open', 'Instruct:\nQuery: ,"b"'])
def test_what_is_no_list_of_prompts(wrong: str) -> None:
    with pytest.raises(UserError, match=r"data\.prompts = "):
        parse_prompts(wrong)


def test_the_last_prompt_is_that_of_all_further_columns() -> None:
    assert of_columns(("q", "p"), ("a", "b", "c")) == ("q", "p", "p")
    assert of_columns(("q",), ("a", "b")) == ("q", "q")
    assert of_columns((), ("a", "b")) == ()
    with pytest.raises(UserError, match=r"2 prompts \('q', 'p'\), and the data has 1 columns of text: a"):
        of_columns(("q", "p"), ("a",))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_wordpiece(TEXTS * 9, 200, folder)
    return load_tokenizer(folder)


@pytest.fixture
def load(tokenizer: Any, tmp_path: Path) -> Any:
    (tmp_path / "rows.csv").write_text(ROWS, encoding="utf-8")

    def call(*prompts: str, max_length: int = 16) -> Corpus:
        files, cache = [str(tmp_path / "rows.csv")], tmp_path / "cache"
        return load_corpus(files, tokenizer, max_length, cache_dir=cache, prompts=prompts)

    return call


def test_tokens_are_of_prompt_and_text_and_hashes_of_the_text(load: Any, tokenizer: Any) -> None:
    plain, prompted = load(), load("query: ", "passage: ")
    rows = [["a man", "a guitar", ""], ["a guitar", "a man", "plays"]]  # a text without tokens has no row
    for row, ids in zip(rows, prompted.token_ids(np.arange(2)), strict=True):
        given = [prompt + text for prompt, text in zip(("query: ", "passage: ", "passage: "), row, strict=True)]
        expected = [tokenizer(text)["input_ids"] if cell else [] for text, cell in zip(given, row, strict=True)]
        assert [each.tolist() for each in ids] == expected
    assert len(prompted) == len(plain) == 2
    np.testing.assert_array_equal(prompted.hashes, plain.hashes)
    assert prompted.report.missing == plain.report.missing == 1
    assert prompted.report.empties == plain.report.empties == 2


def test_other_prompts_are_other_data_and_none_is_what_it_was(load: Any) -> None:
    made = [load(), load("query: "), load("query: ", "passage: "), load("query: ", ""), load("query: ", "query: ")]
    assert len({corpus.fingerprint for corpus in made}) == 4  # one prompt for all, and named for each
    assert [corpus.report.from_cache for corpus in made] == [False, False, False, False, True]
    assert load("query: ", "passage: ").report.from_cache
    with pytest.raises(UserError, match=r"'query: ' takes \d+ tokens[\s\S]*data\.max_length=\d+"):
        load("query: ", max_length=4)


@pytest.mark.parametrize("separate", [False, True])
def test_tokens_of_prompts_are_not_pooled(load: Any, tokenizer: Any, separate: bool) -> None:
    prompts = "query: ", "passage: "
    special = tokenizer.all_special_ids
    counts = [prompt_length(tokenizer(prompt)["input_ids"], special) for prompt in prompts]
    assert counts == [len(tokenizer.tokenize(prompt)) + 1 for prompt in prompts]  # [CLS] counts, [SEP] does not
    layout = Layout(2, 2, 32, separate_anchors=separate)
    examples = ColumnExamples(load(*prompts))
    batch: Any
    plain: Any
    batch, plain = (
        Batches(given, layout, 0)(0).inputs for given in (WithPrompts(examples, [*counts, counts[1]]), examples)
    )
    groups = [(batch.groups, plain.groups)] + [(batch.non_anchors, plain.non_anchors)] * separate
    starts = [counts[0]] * 2 + [counts[1]] * 4
    seen = 0
    for group, whole in groups:
        for slot, (first, length) in enumerate(zip(whole.first_tokens[0], whole.lengths[0], strict=True)):
            start = starts[seen + slot]
            if length:
                assert group.first_tokens[0][slot] == first + start
                assert group.lengths[0][slot] == length - start
                kept = group.ids[0].ravel()[first + start : first + length].tolist()
                assert tokenizer.decode(kept, skip_special_tokens=True) in ("a man", "a guitar", "plays")
            else:
                assert group.lengths[0][slot] == 0
        for name in ("ids", "segments", "positions", "sentences"):
            np.testing.assert_array_equal(getattr(group, name), getattr(whole, name))
        seen += len(whole.lengths[0])
