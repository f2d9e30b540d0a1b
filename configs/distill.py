"""Train a small encoder to give texts the vectors of a good one: distillation, each text encoded once, no dropout.

    python -m simcse_jax.train --config=configs/distill.py --config.teacher.name=DIR_OR_HUB_NAME \
        --config.data.files=sentences.txt
    python -m simcse_jax.train --config=configs/distill.py:triplets --config.teacher.name=DIR_OR_HUB_NAME \
        --config.data.files=triplets.csv

The teacher encodes every text once, into the cache (data.cache_dir); a second start, another seed or another student
reads them from there. Any text will do, without pairs or labels; what counts is that there is much of it, and that it
is like the text to be judged in kind and length. Variants:

    text        lines of text
    triplets    pairs or triplets: each column's texts are learned, and none is the other's positive

Both start from models/wiki-small (in the clone), 4 layers of width 256, to which the teacher's vectors are reduced
(teacher.width; a wider teacher's with 0 need a learned projection). The two losses do different things: mse takes over
its features, kl how similar texts are. With --config.eval.data=sts-dev.csv (score, sentence, sentence) the best
checkpoint is kept.
"""

from ml_collections import ConfigDict

from simcse_jax.recipes import base

# variant: examples of a batch; a triplet has three texts
VARIANTS = {"text": 1024, "triplets": 384}


def get_config(variant: str = "text") -> ConfigDict:
    """Return the recipe of one variant."""
    config = base.get_config()
    config.train.batch_size = base.choose(VARIANTS, variant)
    config.model.name = "./models/wiki-small"
    config.model.pooler = config.model.train_pooler = "avg"
    config.model.dropout = 0.0
    config.model.products = "auto"
    config.data.positive = "columns" if variant == "triplets" else "dropout"
    config.data.max_length = 64
    config.objective.loss = "none"
    config.teacher.name = "sentence-transformers/all-MiniLM-L6-v2"
    config.teacher.width = 256
    config.teacher.mse = 1.0
    config.teacher.kl = 1.0
    config.teacher.products = "auto"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 100
    config.eval.data = ""
    config.eval.every_steps = 500
    return config
