"""Which labelled pairs to train on (the paper's table 4, as far as NLI goes).

    python -m simcse_jax.sweep --config=configs/ablations/labelled_data.py --seeds=0..4

Rows of neutral pairs, or of other data sets, want files of their own:
--row='quora: data.files=pairs.csv data.columns=question1,question2'.
"""

from ml_collections import ConfigDict

from configs.ablations import start


def get_config(variant: str = "full") -> ConfigDict:
    """Supervised SimCSE."""
    return start.supervised(variant)


def rows(_variant: str = "full") -> dict[str, dict[str, object]]:
    """Entailment with hard negatives, the paper's choice, first."""
    return {
        "entailment, contradiction as hard negative": {},
        "entailment": {"data.columns": "sent0,sent1"},
        "contradiction": {"data.columns": "sent0,hard_neg"},
        "premises alone, dropout": {"data.columns": "sent0", "data.positive": "dropout"},
    }
