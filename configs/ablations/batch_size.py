"""Compare batch sizes and learning rates of unsupervised SimCSE; no whole grid of them was published.

    python -m simcse_jax.sweep --config=configs/ablations/batch_size.py --seeds=0..4

Every row trains on the same number of sentences and is evaluated equally often. Set that number with
--config.train.examples or --config.train.epochs, as a step has another size in each row.
"""

from ml_collections import ConfigDict

from simcse_jax.recipes.ablations import start

BATCHES = {"full": (64, 128, 256, 512), "small": (32, 64, 128)}
RATES = {"full": (1e-5, 3e-5, 5e-5), "small": (1e-4, 3e-4, 1e-3)}


def get_config(variant: str = "full") -> ConfigDict:
    """Return unsupervised SimCSE, its length given in sentences."""
    config = start.unsupervised(variant)
    if config.train.steps:
        config.train.examples, config.train.steps = config.train.batch_size * config.train.steps, 0
    return config


def rows(variant: str = "full") -> dict[str, dict[str, object]]:
    """Return a row for each batch size and learning rate, the recipe's own first."""
    own = get_config(variant)
    made: dict[str, dict[str, object]] = {}
    for batch in BATCHES[variant]:
        for rate in RATES[variant]:
            made[f"{batch}, {rate:g}"] = {
                "train.batch_size": batch,
                "optimizer.learning_rate": rate,
                # Equally often: the best of more evaluations is higher for that reason alone.
                "eval.every_steps": max(own.eval.every_steps * own.train.batch_size // batch, 1),
            }
    first = f"{own.train.batch_size}, {own.optimizer.learning_rate:g}"
    return {first: made.pop(first), **made}
