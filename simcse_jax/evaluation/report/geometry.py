"""Describe the geometry of embeddings for the report: a table, how to read it, and what training changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simcse_jax.evaluation.report.tables import Cell, Table, entry_row, format_mean, format_number
from simcse_jax.evaluation.results import Entry, Results, Space


class Reading(NamedTuple):
    """Say how a metric of a Space is shown and read."""

    digits: int
    words: str
    factor: float = 1
    unit: str = ""


READINGS = {
    "alignment": Reading(3, "mean squared distance between the embeddings of close pairs. Lower is better; 0: equal."),
    "uniformity": Reading(
        3, "how evenly sentences are spread on the sphere. Lower is better; random directions: about \u22124."
    ),
    "mean_cosine": Reading(3, "of two different sentences. Near 1, all sentences look alike; near 0, they do not."),
    "effective_rank": Reading(
        1, "how many directions the sentences use, from 1 up to the width. Higher: a flatter spectrum."
    ),
    "isotropy": Reading(3, "1 if no direction stands out, 0.135 if all sentences have the same embedding."),
    "top_share": Reading(
        1,
        "square of the largest singular value as a share of the sum of squares. Lower: a flatter spectrum; "
        "100\u00a0%: one direction.",
        100,
        "\u00a0%",
    ),
}


def geometry_table(results: Results) -> Table | None:
    """Return entries by metrics, with a row before training where training changed the model; None without any."""
    rows = []
    for place, entry in enumerate(results.entries):
        before, after = entry_spaces(entry)
        for spaces, when in ((before, "before training"), (after, "after training" if before else "")):
            if spaces:
                cells = [Cell(_cell(name, spaces)) for name in READINGS]
                note = f"mean of {len(spaces)} runs" if len(spaces) > 1 else ""
                rows.append(entry_row(results, place, cells, ", ".join(filter(None, (when, note)))))
    if not rows:
        return None
    return Table("Geometry", (Cell("Model"), *(Cell(name.replace("_", " ")) for name in READINGS)), tuple(rows))


def describe_pairs(results: Results) -> str:
    """Return a sentence on the pairs that all of these spaces were measured on, or that they do not compare."""
    protocols = [space.protocol for v in results.models for space in (v.space_before, v.space) if space]
    if not protocols:
        return ""
    known = protocols[0]
    if any(protocol[key] != known[key] for protocol in protocols for key in ("source", "data", "scale")):
        return "These models were measured on different pairs, so their numbers do not compare; see the protocol below."
    return (
        f"Measured on the {known['sentences']:,} sentences of {known['source']}; {known['close pairs']:,} of its pairs "
        f"are close (gold score above {known['close above']:g})."
    )


def entry_spaces(entry: Entry) -> tuple[list[Space], list[Space]]:
    """Return the spaces before and after training, of the runs with both; else all after, and none before.

    Runs whose best weights are those before training count as models without training.
    """
    both = [(model.trained_from, model.space) for model in entry.models if model.trained_from and model.space]
    after = [model.space for model in entry.models if model.space]
    return ([before for before, _ in both], [space for _, space in both]) if both else ([], after)


def _cell(name: str, spaces: Sequence[Space]) -> str:
    how = READINGS[name]
    return format_mean([how.factor * space.metrics()[name] for space in spaces], how.digits) + how.unit


def change_sentences(results: Results) -> list[tuple[int, str]]:
    """Return (place of the entry, what training changed in its space), for entries where that is known."""
    found = []
    for place, entry in enumerate(results.entries):
        before, after = entry_spaces(entry)
        untrained = sum(model.is_untrained for model in entry.models)
        words = [describe_changes(before, after)] if before else []
        if untrained:
            which = "" if len(entry.models) == 1 else f" in {untrained} of {len(entry.models)} runs"
            words.append(f"Training changed nothing{which}: no step was better on dev, so the start is kept.")
        if words:
            found.append((place, " ".join(words)))
    return found


def describe_changes(before: Sequence[Space], after: Sequence[Space]) -> str:
    """Return what training did to the spectrum, alignment and uniformity, by the means over runs."""

    def means(name: str) -> tuple[float, float]:
        # Rounded as in the table, so that the words claim no more than its numbers.
        how = READINGS[name]
        first, second = (how.factor * float(np.mean([s.metrics()[name] for s in spaces])) for spaces in (before, after))
        return round(first, how.digits), round(second, how.digits)

    def course(name: str) -> str:
        return " to ".join(format_number(value, READINGS[name].digits) + READINGS[name].unit for value in means(name))

    (rank, rank_after), (share, share_after) = means("effective_rank"), means("top_share")
    # Flatter: more directions, and less in the largest.
    signs = np.sign(rank_after - rank), np.sign(share - share_after)
    change = {(1, 1): "got flatter", (-1, -1): "got steeper", (0, 0): "stayed the same"}.get(
        signs, "got neither flatter nor steeper as a whole"
    )
    words = [f"The spectrum {change}: effective rank {course('effective_rank')}, top share {course('top_share')}."]
    for name in ("alignment", "uniformity"):
        first, second = means(name)
        how = "got better" if second < first else "got worse" if second > first else "stayed the same"
        words.append(f"{name.capitalize()} {how}: {course(name)}.")
    return " ".join(words)
