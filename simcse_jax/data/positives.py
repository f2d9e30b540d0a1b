"""What makes a positive: which texts of an example are encoded, and how often.

`dropout`: one text, encoded twice; the two dropout masks are the only difference (SimCSE, section 3).
`columns`: the second column is the positive, further ones are hard negatives (section 4).
"""

from __future__ import annotations

from simcse_jax.errors import UserError

POSITIVES = ("dropout", "columns")


def views_of(positive: str, columns: tuple[str, ...]) -> int:
    """How often each text is embedded: 2 for `dropout`, 1 for `columns`.

    Raises UserError when the data's text columns do not suit: `dropout` takes one column, `columns` two or more.
    """
    named = ", ".join(columns)
    if positive == "dropout" and len(columns) != 1:
        raise UserError(
            f"data.positive = 'dropout' takes one text column, and the data has {len(columns)}: {named}.\n"
            f"Choose one with --config.data.columns={columns[0]}, or train on the pairs with configs/sup.py "
            "(data.positive = 'columns')."
        )
    if positive == "columns" and len(columns) < 2:
        raise UserError(
            f"data.positive = 'columns' takes two or more text columns (sentence, positive, hard negatives ...), and "
            f"the data has one: {named}.\nTrain on plain sentences with configs/unsup.py (data.positive = 'dropout')."
        )
    return 2 if positive == "dropout" else 1
