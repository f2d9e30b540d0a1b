"""Make models/mini: a small encoder that learns the vectors of all-MiniLM-L6-v2 on short sentences.

    python -m benchmarks.mini_text --wiki=FILE --nli=FILE --without=SentEval/data/downstream --out=mini_text
    python -m simcse_jax.train --config=configs/mini.py --config.teacher.name=DIR_OR_HUB_NAME \
        --config.eval.data=sts-dev.csv --workdir=runs/mini-1
    python -m simcse_jax.train --config=configs/mini.py:more --config.teacher.name=DIR_OR_HUB_NAME \
        --config.eval.data=sts-dev.csv --config.model.init=run:runs/mini-1 --workdir=runs/mini

It is configs/distill.py on two sources: sentences of Wikipedia, and those of NLI, which are captions and shorter
statements. STS's texts are more like the latter, of which there are a tenth as many: a batch has a half of each.
models/mini/README.md has the scores and the cost.
"""

from ml_collections import ConfigDict

from simcse_jax.recipes import base, distill

# variant: (steps, learning rate, warm-up, seed); another seed has another order of the text
VARIANTS = {"first": (4500, 1e-3, 300, 0), "more": (4000, 7e-4, 100, 1)}


def get_config(variant: str = "first") -> ConfigDict:
    """Return the recipe of one of the two runs."""
    config = distill.get_config()
    base.add_source(config, "wiki", files="mini_text/wiki.txt")
    base.add_source(config, "nli", files="mini_text/nli.txt")
    config.data.mixing = "example"
    config.train.batch_size = 128
    config.train.epochs = 0.0
    optimizer, train = config.optimizer, config.train
    train.steps, optimizer.learning_rate, optimizer.warmup_steps, train.seed = base.choose(VARIANTS, variant)
    return config
