"""Define the flags of `search --mine-negatives`, and write the training file that they ask for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from simcse_jax.system.errors import UserError
from simcse_jax.system.mirror import written

if TYPE_CHECKING:
    from simcse_jax.serving.mining import Rules
    from simcse_jax.serving.model import SimCSE

MINE = flags.DEFINE_string(
    "mine_negatives", "", "A .csv file for training to write: the rows of --pairs with hard negatives."
)
PAIRS = flags.DEFINE_list(
    "pairs",
    [],
    "With --mine-negatives: training files of anchors and positives. The positives are the default of --corpus.",
)
_RANKS = flags.DEFINE_list("ranks", ["1", "100"], "With --mine-negatives: the first and last rank of a hard negative.")
_MARGIN = flags.DEFINE_float("margin", 0.05, "With --mine-negatives: how far below the positive's score to stay.", 0, 2)
_RELATIVE = flags.DEFINE_float(
    "relative_margin",
    0.0,
    "With --mine-negatives: the same as a share of the positive's score: 0.05 is 5 % below.",
    0,
    2,
)
_CEILING = flags.DEFINE_float("ceiling", 0.9, "With --mine-negatives: the highest score of a hard negative.", -1, 1)
_FLOOR = flags.DEFINE_float("floor", -1.0, "With --mine-negatives: the lowest score of a hard negative.", -1, 1)
_NEGATIVES = flags.DEFINE_integer(
    "negatives", 1, "With --mine-negatives: hard negatives of a row, at most.", lower_bound=1
)
_SAMPLED = flags.DEFINE_bool(
    "sampled", False, "With --mine-negatives: draw them among all that the other flags admit, not the most similar."
)
_SEED = flags.DEFINE_integer("seed", 0, "With --sampled: the seed of the draw.", lower_bound=0)
_ONLY_HERE = ("ranks", "margin", "relative_margin", "ceiling", "floor", "negatives", "sampled", "seed")


def require_complete() -> None:
    """Raise UserError where the flags do not go together, or name files that cannot be read or written."""
    from simcse_jax.serving.mining import open_pairs, require_csv

    if not MINE.value and (idle := next((name for name in _ONLY_HERE if flags.FLAGS[name].present), None)):
        raise UserError(f"--{idle} is of --mine-negatives, which is not given. Give it, or leave --{idle} out.")
    if bool(MINE.value) != bool(PAIRS.value):
        raise UserError("--mine-negatives=OUT.csv and --pairs=TRAINING_FILE need each other. Give both or neither.")
    if MINE.value:
        with written(MINE.value) as out:
            require_csv(out)
        _rules()
        open_pairs(PAIRS.value)


def mine(model: SimCSE, prompt: str | None, corpus_prompt: Mapping[str, Any]) -> None:
    """Write the training file. prompt: of anchors. corpus_prompt: of positives, where the model has no index yet."""
    from simcse_jax.serving.mining import hard_negatives, open_pairs, read_pairs, write_negatives

    rules = _rules()
    pairs = read_pairs(PAIRS.value)
    tables = zip(*open_pairs(PAIRS.value), strict=True)
    if left := {name for table, read in tables for name in (*table.columns, *table.other_columns) if name not in read}:
        print(f"not read: {', '.join(sorted(left))}", file=sys.stderr)
    index = model.index
    if index is None:
        texts = list(dict.fromkeys(positive for _, positive in pairs))
        index = model.build_index(texts, show_progress=True, **corpus_prompt)
    anchors, positives = (
        model.encode([pair[side] for pair in pairs], show_progress=True, prompt=words)
        for side, words in ((0, prompt), (1, index.prompt))
    )
    if len(index) <= rules.ranks[1]:
        print(
            f"note: --ranks={','.join(_RANKS.value)} covers the whole corpus of {len(index):,} sentences; "
            "a larger --corpus gives better negatives",
            file=sys.stderr,
        )
    found = hard_negatives(pairs, anchors, positives, index, rules)
    count, total = write_negatives(MINE.value, found, rules.negatives)
    of_all = "triplets" if rules.negatives == 1 else f"rows with {total:,} hard negatives"
    print(f"written: {MINE.value} ({count:,} {of_all} of {len(pairs):,} pairs)")


def _rules() -> Rules:
    """Return which texts are hard negatives, as the flags say."""
    from simcse_jax.serving.mining import Rules

    try:
        low, high = map(int, _RANKS.value)
    except ValueError:
        raise UserError(f"--ranks={','.join(_RANKS.value)} must be two integers, for example --ranks=1,100.") from None
    if flags.FLAGS["seed"].present and not _SAMPLED.value:
        raise UserError("--seed is of --sampled, which is not given. Give it, or leave --seed out.")
    return Rules(
        ranks=(low, high),
        margin=_MARGIN.value,
        relative_margin=_RELATIVE.value,
        ceiling=_CEILING.value,
        floor=_FLOOR.value,
        negatives=_NEGATIVES.value,
        sampled=_SAMPLED.value,
        seed=_SEED.value,
    )
