"""Train by masked language modelling alone: a BERT from random weights, or a pretrained one on text of a domain.

    python -m simcse_jax.train --config=configs/pretrain.py --config.data.files=text.txt
    python -m simcse_jax.train --config=configs/pretrain.py:continue --config.data.files=text.txt

--config.mlm.validation=held_out.txt logs the perplexity of held-out text, which chooses the best checkpoint. Variants:

    small       4 layers of width 256, a vocabulary of 8,192 made from the text, 5 million parameters, one epoch
    continue    bert-base-uncased, 3 epochs

SimCSE runs start from the model folder of this run: --config=configs/unsup.py --config.model.name=runs/pretrain/model,
or, for the small variant, --config=configs/small.py with the same key.
"""

from ml_collections import ConfigDict

from simcse_jax.recipes import base


def _small(config: ConfigDict) -> None:
    config.model.name = ""
    config.model.init = "random"
    config.model.num_hidden_layers = 4
    config.model.hidden_size = 256
    config.model.num_attention_heads = 4
    config.model.intermediate_size = 768
    config.model.tokenizer = "train"
    config.model.vocab_size = 8192
    config.optimizer.learning_rate = 1e-3
    config.train.batch_size = 256


def _continue(config: ConfigDict) -> None:
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 100  # a domain's text is small: 25,000 sentences are 98 steps an epoch
    config.train.batch_size = 256
    config.train.epochs = 3.0


VARIANTS = {"small": _small, "continue": _continue}


def get_config(variant: str = "small") -> ConfigDict:
    """Return the recipe of one variant."""
    config = base.get_config()
    config.objective.loss = "none"
    config.mlm.weight = 1.0
    config.model.pooler = config.model.train_pooler = "avg"
    config.data.max_length = 64
    config.train.epochs = 1.0
    config.optimizer.warmup_steps = 500
    config.optimizer.weight_decay = 0.01
    config.eval.data = ""
    config.eval.every_steps = 500
    base.choose(VARIANTS, variant)(config)
    return config
