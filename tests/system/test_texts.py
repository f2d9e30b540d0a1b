"""The gate of texts: what is taken, and what is refused by its kind or its place."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset

from simcse_jax.system.errors import UserError
from simcse_jax.system.texts import each_text

TAKEN = {
    "list": lambda texts: texts,
    "tuple": tuple,
    "generator": iter,
    "keys": lambda texts: dict.fromkeys(texts).keys(),
    "Series": lambda texts: pd.Series(texts, index=[7, 9]),
    "string Series": lambda texts: pd.Series(texts, dtype="string"),
    "array": np.array,
    "array of objects": lambda texts: np.array(texts, object),
    "np.str_": lambda texts: [np.str_(text) for text in texts],
}


@pytest.mark.parametrize("make", TAKEN.values(), ids=TAKEN)
def test_all_kinds_of_texts_are_plain_strings(make: Callable[[list[str]], Any]) -> None:
    found = list(each_text(make(["a", "näive 🙂"])))
    assert found == ["a", "näive 🙂"]
    assert all(type(text) is str for text in found)


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        ("a text", "str"),
        (b"bytes", "bytes"),
        (7, "int"),
        (None, "None"),
        ({"a", "b"}, "set"),
        (pd.DataFrame({"q": ["a"], "r": ["b"]}), r"df\['q'\].*'q', 'r'"),
        (pd.DataFrame([["a"]]), r"df\[0\]"),
        (pa.table({"q": ["a"]}), r"\['q'\]"),
        (Dataset.from_dict({"q": ["a"]}), r"\['q'\]"),
        (pd.DataFrame(), "DataFrame"),
        ({"q": ["a"]}, r"\['q'\]"),
        (["a", 7], "Text 1 is int 7"),
        (iter(["a", "b", None]), "Text 2 is None"),
        (pd.Series(["a", None], dtype="string"), "Text 1 .*NA"),
        (np.array([["a", "b"]]), "Text 0 is ndarray"),
        (pa.chunked_array([["a"]]).cast("binary"), "Text 0 is bytes"),
    ],
)
def test_what_is_no_text_is_a_type_error(texts: Any, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        list(each_text(texts))


def test_half_of_an_emoji_is_named_with_its_place() -> None:
    with pytest.raises(UserError, match=r"Text 1 .*'\\ud83d' at place 4"):
        list(each_text(["a cat", "bad \ud83d"]))
