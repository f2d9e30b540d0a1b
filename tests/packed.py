"""Pack sentences into one group, as tests of the encoder need it."""

from collections.abc import Sequence

import numpy as np

from simcse_jax.data.packing import fill, fit_groups
from simcse_jax.group import Group


def pack(
    tokens: Sequence[np.ndarray],
    row_length: int,
    rows: int | None = None,
    first_sentence: int = 0,
    one_per_row: bool = False,
) -> Group:
    """Return one group that holds these sentences, numbered from `first_sentence`.

    rows: the number of rows, None = as many as are used.
    """
    lengths = np.array([len(t) for t in tokens], np.int64)
    slots = fit_groups(lengths[None], row_length, one_per_row)[0]
    places = first_sentence + np.arange(len(tokens))
    return fill(tokens, slots, places, (rows or max(slots.used, 1), row_length))
