"""What the ablations start from: the paper's setting ("full"), or one that two CPU cores can run ("small").

"small" starts from models/wiki-small, and wants local text:

    --config.data.files=sentences.txt --config.eval.data=sts-dev.csv

Its learning rates and its length were chosen once, for plain SimCSE, and are the same in every row.
"""

from ml_collections import ConfigDict

from configs import base, sup, unsup

VARIANTS = ("full", "small")
SMALL_STEPS = 500


def unsupervised(variant: str) -> ConfigDict:
    """Unsupervised SimCSE: BERT-base, or a small encoder."""
    return _sized(unsup.get_config(), variant, 1e-4)


def supervised(variant: str) -> ConfigDict:
    """Supervised SimCSE: BERT-base, or a small encoder on fewer triplets a step."""
    config = _sized(sup.get_config(), variant, 2e-4)
    if variant == "small":
        config.train.batch_size = 128
    return config


def _sized(config: ConfigDict, variant: str, learning_rate: float) -> ConfigDict:
    if base.choose(dict.fromkeys(VARIANTS, 0) | {"small": SMALL_STEPS}, variant):
        config.model.name = "models/wiki-small"
        config.train.epochs = 0.0
        config.train.steps = SMALL_STEPS
        config.eval.every_steps = SMALL_STEPS // 5
        config.optimizer.learning_rate = learning_rate
    return config
