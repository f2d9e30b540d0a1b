"""Train on several sources at once: text without labels, pairs, and triplets, each with a share of the steps.

    python -m simcse_jax.train --config=configs/mixture.py --config.data.sources.text.files=sentences.txt \
        --config.data.sources.pairs.files=pairs.csv --config.data.sources.triplets.files=triplets.csv

It needs no network and takes minutes on 2 cores: it starts from models/wiki-small, and stops after 100 steps
(--config.train.epochs=1 for as many examples as all sources have). A source of yours is one call of `add_source`; its
keys, like `data.sources.pairs.weight`, can be given on the command line, and those that it leaves out are as in
`data`: --config.data.prompts="query: ,passage: " is for all of them, --config.data.sources.pairs.prompts for one.
A weight of 0 leaves a source out. docs/data.md has the rules.
"""

from ml_collections import ConfigDict

from simcse_jax.recipes import base


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = base.get_config()
    # Sentences, each its own positive by dropout. A half of the steps: they are the least like what is asked for later,
    # and there are the most of them.
    base.add_source(config, "text", positive="dropout", weight=2.0)
    # A question and its answer, a title and its text: two columns.
    base.add_source(config, "pairs", positive="columns")
    # A sentence, one that follows from it, one that contradicts it; rows may lack the third.
    base.add_source(config, "triplets", positive="columns")
    # A batch is of one source, so that a sentence's negatives are of its own kind: a caption among questions would be
    # told apart by its style. "example" mixes them within a batch.
    config.data.mixing = "batch"
    # The shares are the weights. 1.0: weight x number of rows; 2.0: weight x its root, which favours small sources.
    config.data.mixing_temperature = 0.0
    config.model.name = base.shipped_model("wiki-small")
    config.model.pooler = config.model.train_pooler = "avg"
    config.train.epochs = 0.0
    config.train.steps = 100
    config.optimizer.learning_rate = 3e-4
    # A dev set of a source is scored as its own metric, and the mean of all chooses the best checkpoint:
    # --config.data.sources.pairs.dev=pairs-dev.tsv (score, sentence, sentence), or retrieval:DIR.
    config.eval.data = ""
    config.eval.every_steps = 25
    return config
