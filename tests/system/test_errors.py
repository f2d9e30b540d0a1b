"""What is added to a message of an error."""

import pytest

from simcse_jax.system.errors import UserError, about


@pytest.mark.parametrize("said", ["mine.csv, line 3: a sentence is blank.", "data.csv has no rows."])
def test_a_message_without_a_key_gets_it(said: str) -> None:
    with pytest.raises(UserError) as caught, about("eval.data", "a file"):
        raise UserError(said)
    assert str(caught.value) == f"{said}\nThis is about --config.eval.data, which takes a file."


@pytest.mark.parametrize(
    "said",
    [
        "data.sources.faq.files = '': must be a file.",
        "mine.csv has no column of text.\nName one: --config.data.columns=NAME",
    ],
)
def test_one_that_names_another_key_does_not(said: str) -> None:
    with pytest.raises(UserError) as caught, about("data.files", "files of text"):
        raise UserError(said)
    assert str(caught.value) == said
