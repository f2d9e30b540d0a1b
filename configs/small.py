"""Train a small pretrained encoder in minutes on two CPU cores: the README's story, and the small ablations.

    python -m simcse_jax.train --config=configs/small.py --config.data.files=sentences.txt
    python -m simcse_jax.train --config=configs/small.py:sup --config.data.files=triplets.csv

With --config.eval.data=sts-dev.csv (score, sentence, sentence) the run is scored while it trains, and the best
checkpoint kept instead of the last.

Both variants start from models/wiki-small (in the clone), 4 layers of width 256, and pool by the mean: [CLS] starts 5
points lower on STS-B dev, and gains nothing here. The training text should resemble the text to be judged, in kind and
length: on sentences of Wikipedia, dropout alone makes this encoder worse at STS, on NLI premises better
(docs/results.md). Learning rates and length were chosen once, on STS-B dev with NLI premises and triplets.
"""

from ml_collections import ConfigDict

from simcse_jax.recipes import base

STEPS = 100

# variant: (positive, batch size, learning rate)
VARIANTS = {"unsup": ("dropout", 64, 3e-4), "sup": ("columns", 128, 2e-4)}


def get_config(variant: str = "unsup") -> ConfigDict:
    """Return the recipe of one variant."""
    config = base.get_config()
    positive, batch_size, learning_rate = base.choose(VARIANTS, variant)
    config.model.name = base.shipped_model("wiki-small")
    config.model.pooler = config.model.train_pooler = "avg"
    config.data.positive = positive
    config.train.batch_size = batch_size
    config.train.epochs = 0.0
    config.train.steps = STEPS
    config.optimizer.learning_rate = learning_rate
    config.eval.data = ""
    config.eval.every_steps = STEPS // 2
    return config
