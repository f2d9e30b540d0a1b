"""Which labelled pairs to train on (the paper's table 4, as far as NLI goes).

    python -m simcse_jax.sweep --config=configs/ablations/labelled_data.py --seeds=0..4
    python -m simcse_jax.sweep --config=configs/ablations/labelled_data.py:full-neutral --config.data.files=nli.csv

The second has rows with neutral pairs too, and wants a file with such a column (docs/data.md makes one of NLI's
labels), as the published triplets have none. Other data sets want files of their own, and are added to the same table
by the first command again, with --row='quora: data.files=pairs.csv data.columns=question1,question2'.
"""

from ml_collections import ConfigDict

from configs.ablations import start


def get_config(variant: str = "full") -> ConfigDict:
    """Supervised SimCSE."""
    return start.with_neutral(variant)


def rows(variant: str = "full") -> dict[str, dict[str, object]]:
    """Entailment with hard negatives, the paper's choice, first."""
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
