"""Train supervised SimCSE: three epochs of 275,601 NLI triplets, contradictions as hard negatives (paper, section 4).

    python -m simcse_jax.train --config=configs/sup.py                 # bert-base
    python -m simcse_jax.train --config=configs/sup.py:roberta-large

Variants, with batch size and learning rate from the paper's appendix, and the published STS average over seven tasks
(table 5; bert-large from the authors' list of released models):

    bert-base      batch 512  lr 5e-5   81.57
    bert-large     batch 512  lr 1e-5   82.21
    roberta-base   batch 512  lr 5e-5   82.52
    roberta-large  batch 512  lr 1e-5   83.76

These scores are published ones, not measured with this code. Cost: 1,614 steps of 1,536 sentences: about 2.5e6
sentences, a little more than the unsupervised recipe encodes.

For your own pairs or triplets: --config.data.files=my.csv, with columns sentence, positive[, hard negative ...].
"""

from ml_collections import ConfigDict

from simcse_jax.recipes import base

# variant: (Hub name, batch size, learning rate)
VARIANTS = {
    "bert-base": ("bert-base-uncased", 512, 5e-5),
    "bert-large": ("bert-large-uncased", 512, 1e-5),
    "roberta-base": ("roberta-base", 512, 5e-5),
    "roberta-large": ("roberta-large", 512, 1e-5),
}


def get_config(variant: str = "bert-base") -> ConfigDict:
    """Return the recipe of one variant."""
    config = base.get_config()
    config.model.name, config.train.batch_size, config.optimizer.learning_rate = base.choose(VARIANTS, variant)
    config.model.pooler = "cls"  # supervised models use their head at test time too
    config.data.files = "hf://datasets/princeton-nlp/datasets-for-simcse/nli_for_simcse.csv"
    config.data.positive = "columns"
    config.train.epochs = 3.0
    return config
