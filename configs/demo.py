"""The demonstration: a small BERT from random weights on a generated world of captions, offline, in minutes on 2 cores.

    python -m simcse_jax.train --config=configs/demo.py         # unsupervised: dropout as the only noise
    python -m simcse_jax.train --config=configs/demo.py:sup     # supervised: triplets with hard negatives

Its world, its tokenizer and its dev pairs are made on the spot (simcse_jax/data/demo.py).
"""

from ml_collections import ConfigDict

from configs import base

# variant: (data, positive, pooler, batch size, learning rate, steps)
VARIANTS = {
    "unsup": ("demo:sentences", "dropout", "avg", 64, 3e-4, 300),
    "sup": ("demo:triplets", "columns", "avg", 64, 5e-4, 400),
}


def get_config(variant: str = "unsup") -> ConfigDict:
    """The recipe of one variant."""
    config = base.get_config()
    config.data.files, config.data.positive, pooler, batch_size, learning_rate, steps = base.choose(VARIANTS, variant)
    config.model.pooler = config.model.train_pooler = pooler
    config.model.name = ""
    config.model.init = "random"
    config.model.num_hidden_layers = 2
    config.model.hidden_size = 128
    config.model.num_attention_heads = 4
    config.model.intermediate_size = 512
    config.model.tokenizer = "train"
    config.model.vocab_size = 2000
    config.train.batch_size = batch_size
    config.train.epochs = 0.0
    config.train.steps = steps
    config.optimizer.learning_rate = learning_rate
    config.optimizer.warmup_steps = steps // 10
    config.eval.data = "demo:dev"
    config.eval.every_steps = 50
    config.checkpoint.every_steps = 100
    return config
