"""Make models/mini: a small encoder that learns the vectors of all-MiniLM-L6-v2 on short sentences.

    python -m benchmarks.mini_text --wiki=FILE --nli=FILE --without=SentEval/data/downstream --out=mini_text
    python -m simcse_jax.train --config=configs/mini.py --config.teacher.name=DIR_OR_HUB_NAME \
        --config.eval.data=sts-dev.csv

It is configs/distill.py on two sources: sentences of Wikipedia, and those of NLI, which are captions and shorter
statements. STS's texts are more like the latter, of which there are a tenth as many: a batch has a half of each.
models/mini/README.md has the scores and the cost.
"""

from ml_collections import ConfigDict

from simcse_jax.recipes import base, distill


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = distill.get_config()
    base.add_source(config, "wiki", files="mini_text/wiki.txt")
    base.add_source(config, "nli", files="mini_text/nli.txt")
    config.data.mixing = "example"
    config.train.batch_size = 128
    config.train.epochs = 0.0
    config.train.steps = 4500
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 300
    return config
