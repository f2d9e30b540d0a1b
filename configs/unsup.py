"""Train unsupervised SimCSE: one epoch of 10^6 Wikipedia sentences, dropout as the only noise (paper, section 3).

    python -m simcse_jax.train --config=configs/unsup.py                 # bert-base
    python -m simcse_jax.train --config=configs/unsup.py:roberta-large

Variants, with batch size and learning rate from the paper's appendix, and the published STS average over seven tasks
(table 5; bert-large from the authors' list of released models):

    bert-base      batch  64  lr 3e-5   76.25   (50 seeds: 75.11 +- 0.84, from 73.16 to 76.70)
    bert-large     batch  64  lr 1e-5   78.41
    roberta-base   batch 512  lr 1e-5   76.57
    roberta-large  batch 512  lr 3e-5   78.90

These scores are published ones, not measured with this code; one seed says little, so train with several.
Cost: 10^6 sentences of 21.9 tokens, each encoded twice: 15,625 steps at batch 64, 1,953 at 512; about 2.2e16 FLOPs for
a base model, 8e16 for a large one (6 FLOPs per parameter and token).

Data and model come from the Hub. With local ones:

    --config.data.files=my_sentences.txt --config.model.name=/models/bert-base-uncased --config.eval.data=sts-dev.csv
"""

from ml_collections import ConfigDict

from simcse_jax.recipes import base

# variant: (Hub name, batch size, learning rate)
VARIANTS = {
    "bert-base": ("bert-base-uncased", 64, 3e-5),
    "bert-large": ("bert-large-uncased", 64, 1e-5),
    "roberta-base": ("roberta-base", 512, 1e-5),
    "roberta-large": ("roberta-large", 512, 3e-5),
}


def get_config(variant: str = "bert-base") -> ConfigDict:
    """Return the recipe of one variant."""
    config = base.get_config()
    config.model.name, config.train.batch_size, config.optimizer.learning_rate = base.choose(VARIANTS, variant)
    config.data.files = "hf://datasets/princeton-nlp/datasets-for-simcse/wiki1m_for_simcse.txt"
    config.train.epochs = 1.0
    return config
