"""Batch size against learning rate of unsupervised SimCSE, which was never published as a whole.

    python -m simcse_jax.sweep --config=configs/ablations/batch_size.py --seeds=0..4

Every row sees as many sentences, and is evaluated as often. How many: --config.train.examples or --config.train.epochs;
steps would be of different sizes.
"""

from ml_collections import ConfigDict

from configs.ablations import start

BATCHES = {"full": (64, 128, 256, 512), "small": (32, 64, 128)}
RATES = {"full": (1e-5, 3e-5, 5e-5), "small": (1e-4, 3e-4, 1e-3)}


def get_config(variant: str = "full") -> ConfigDict:
    """Unsupervised SimCSE, its length said in sentences."""
    config = start.unsupervised(variant)
    if config.train.steps:
        config.train.examples, config.train.steps = config.train.batch_size * config.train.steps, 0
    return config


def rows(variant: str = "full") -> dict[str, dict[str, object]]:
    """The recipe's own setting first."""
    own = get_config(variant)
    made: dict[str, dict[str, object]] = {}
    for batch in BATCHES[variant]:
        for rate in RATES[variant]:
            made[f"{batch}, {rate:g}"] = {
                "train.batch_size": batch,
                "optimizer.learning_rate": rate,
                # As often by sentences: the best of more evaluations is the better one for that alone.
                "eval.every_steps": max(own.eval.every_steps * own.train.batch_size // batch, 1),
            }
    first = f"{own.train.batch_size}, {own.optimizer.learning_rate:g}"
    return {first: made.pop(first), **made}
