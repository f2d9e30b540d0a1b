"""Compare next sentences as positives with dropout, with one encoder and with two (the paper's table 2).

    python -m simcse_jax.sweep --config=configs/ablations/next_sentence.py --seeds=0..4 \
        --config.data.files=documents.txt

The text must be in the order of its documents, with a blank line between them. wiki1m_for_simcse.txt is shuffled, so it
cannot be used.
"""

from ml_collections import ConfigDict

from simcse_jax.recipes.ablations import start


def get_config(variant: str = "full") -> ConfigDict:
    """Return unsupervised SimCSE."""
    return start.unsupervised(variant)


def rows(_variant: str = "full") -> dict[str, dict[str, object]]:
    """Return the rows of the paper, its choice first, each with one encoder and with two."""
    positives: dict[str, dict[str, object]] = {
        "dropout": {},
        "next sentence": {"data.positive": "next_sentence"},
        "next 3 sentences": {"data.positive": "next_sentence", "data.window": 3},
        "delete one word": {"data.positive": "word_deletion", "data.rate": 0.0},
    }
    two: dict[str, object] = {"model.second_encoder": "copy"}
    return positives | {f"{label}, two encoders": settings | two for label, settings in positives.items()}
