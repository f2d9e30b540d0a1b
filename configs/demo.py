"""Train SimCSE on generated captions, offline, in minutes on two CPU cores.

    python -m simcse_jax.train --config=configs/demo.py         # unsupervised: dropout as the only noise
    python -m simcse_jax.train --config=configs/demo.py:sup     # supervised: triplets with hard negatives

Both start from models/wiki-small, a small BERT pretrained on Wikipedia. `:scratch` and `:scratch-sup` start from
random weights of a smaller encoder, with a tokenizer trained at the start of the run: they show what dropout cannot
teach without pretraining. Captions and dev pairs are generated at the start too (simcse_jax/data/demo.py).
"""

from ml_collections import ConfigDict

from simcse_jax.recipes import base

# variant: (data, positive, learning rate, steps)
VARIANTS = {
    "unsup": ("demo:sentences", "dropout", 3e-4, 100),
    "sup": ("demo:triplets", "columns", 5e-4, 200),
    "scratch": ("demo:sentences", "dropout", 3e-4, 300),
    "scratch-sup": ("demo:triplets", "columns", 5e-4, 400),
}


def get_config(variant: str = "unsup") -> ConfigDict:
    """Return the recipe of one variant."""
    config = base.get_config()
    config.data.files, config.data.positive, learning_rate, steps = base.choose(VARIANTS, variant)
    config.model.name = base.shipped_model("wiki-small")
    config.model.pooler = config.model.train_pooler = "avg"
    config.train.batch_size = 64
    config.train.epochs = 0.0
    config.train.steps = steps
    config.optimizer.learning_rate = learning_rate
    config.eval.data = "demo:dev"
    config.eval.every_steps = 50
    config.checkpoint.every_steps = 100
    if variant.startswith("scratch"):
        _from_random_weights(config)
    return config


def _from_random_weights(config: ConfigDict) -> None:
    config.model.name = ""
    config.model.init = "random"
    config.model.num_hidden_layers = 2
    config.model.hidden_size = 128
    config.model.num_attention_heads = 4
    config.model.intermediate_size = 512
    config.model.tokenizer = "train"
    config.model.vocab_size = 2000
    config.optimizer.warmup_steps = config.train.steps // 10
