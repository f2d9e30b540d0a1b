"""Compare labelled pairs to train on (the NLI rows of the paper's table 4).

    python -m simcse_jax.sweep --config=configs/ablations/labelled_data.py --seeds=0..4
    python -m simcse_jax.sweep --config=configs/ablations/labelled_data.py:full-neutral --config.data.files=nli.csv

The second command also has rows with neutral pairs, and needs a file with a column of them (docs/data.md makes one from
NLI labels), as the published triplets have none. Other data sets need their own files: repeat the first command with
--row='quora: data.files=pairs.csv data.columns=question1,question2' to add a row to the same table.
"""

from ml_collections import ConfigDict

from simcse_jax.recipes.ablations import start


def get_config(variant: str = "full") -> ConfigDict:
    """Return supervised SimCSE."""
    return start.with_neutral(variant)


def rows(variant: str = "full") -> dict[str, dict[str, object]]:
    """Return the rows, entailment with hard negatives (the paper's choice) first."""
    made: dict[str, dict[str, object]] = {
        "entailment, contradiction as hard negative": {},
        "entailment": {"data.columns": "sent0,sent1"},
        "contradiction": {"data.columns": "sent0,hard_neg"},
        "premises alone, dropout": {"data.columns": "sent0", "data.positive": "dropout"},
    }
    if start.has_neutral(variant):
        made["neutral"] = {"data.columns": "sent0,neutral"}
        made["entailment, neutral as hard negative"] = {"data.columns": "sent0,sent1,neutral"}
        made["entailment, both as hard negatives"] = {"data.columns": "sent0,sent1,hard_neg,neutral"}
    return made
