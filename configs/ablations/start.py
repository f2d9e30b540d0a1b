"""What the ablations start from: the paper's setting ("full"), or one that two CPU cores can run ("small").

"small" is configs/small.py, and wants local files (supervised ones triplets):

    --config.data.files=sentences.txt --config.eval.data=sts-dev.csv

No row was tuned: rate and length are those of the recipe in all, but where they are what varies.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import base, small, sup, unsup


def unsupervised(variant: str) -> ConfigDict:
    """Unsupervised SimCSE: BERT-base, or a small encoder."""
    makers: dict[str, Callable[[], ConfigDict]] = {"full": unsup.get_config, "small": small.get_config}
    return base.choose(makers, variant)()


def supervised(variant: str) -> ConfigDict:
    """Supervised SimCSE: BERT-base, or a small encoder on fewer triplets a step."""
    makers: dict[str, Callable[[], ConfigDict]] = {"full": sup.get_config, "small": lambda: small.get_config("sup")}
    return base.choose(makers, variant)()
