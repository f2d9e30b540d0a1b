"""What the report says of the shape of the space: a table, how to read it, and what training changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simcse_jax.evaluation.report.tables import Cell, Table, entry_row, number, with_spread
from simcse_jax.evaluation.results import Entry, Results, Space


class Figure(NamedTuple):
    """How a figure of a Space is shown, and how to read it."""

    digits: int
    reading: str
    factor: float = 1
    unit: str = ""


FIGURES = {
    "alignment": Figure(3, "mean squared distance between the embeddings of close pairs. Lower is better; 0: equal."),
    "uniformity": Figure(
        3, "how evenly sentences lie on the sphere. Lower is better; random directions: about \u22124."
    ),
    "mean_cosine": Figure(3, "of two different sentences. Near 1, all sentences look alike; near 0, they do not."),
    "effective_rank": Figure(1, "how many directions the sentences fill, from 1 up to the width. Higher: flatter."),
    "isotropy": Figure(3, "1 if no direction stands out, 0.135 if all sentences are one."),
    "top_share": Figure(
        1,
        "of the largest singular value in the sum of all, squared. Lower: flatter; 100\u00a0%: one direction.",
        100,
        "\u00a0%",
    ),
}


def geometry_table(results: Results) -> Table | None:
    """Entries by figures; a row before training where that is known."""
    rows = []
    for place, entry in enumerate(results.entries):
        before, after = entry_spaces(entry)
        both = bool(before)
        for spaces, when in ((before, "before training"), (after, "after training" if both else "")):
            if spaces:
                cells = [Cell(_figure(name, spaces)) for name in FIGURES]
                note = f"mean of {len(spaces)} runs" if len(spaces) > 1 else ""
                rows.append(entry_row(results, place, cells, ", ".join(filter(None, (when, note)))))
    if not rows:
        return None
    return Table(
        "The space in figures", (Cell("Model"), *(Cell(name.replace("_", " ")) for name in FIGURES)), tuple(rows)
    )


def measured(results: Results) -> str:
    """On what all of these spaces were measured, in a sentence; or that they do not compare."""
    spaces = [space for v in results.verdicts for space in (v.space_before, v.space) if space]
    protocols = [space.protocol for space in spaces]
    if any(protocol.get(key) != protocols[0].get(key) for protocol in protocols for key in ("source", "data", "scale")):
        return "These models were measured on different pairs, so their figures do not compare; see the protocol below."
    known = protocols[0] if protocols else {}
    if not known.keys() >= {"source", "sentences", "close pairs"}:
        return ""
    above = f" (gold score above {known['close above']:g})" if "close above" in known else ""
    return (
        f"Measured on the {known['sentences']:,} sentences of {known['source']}; {known['close pairs']:,} of its pairs "
        f"are close{above}."
    )


def entry_spaces(entry: Entry) -> tuple[list[Space], list[Space]]:
    """The spaces before and after training: of runs with both, or else of all after."""
    both = [(v.space_before, v.space) for v in entry.verdicts if v.space_before and v.space]
    after = [verdict.space for verdict in entry.verdicts if verdict.space]
    return ([before for before, _ in both], [space for _, space in both]) if both else ([], after)


def _figure(name: str, spaces: Sequence[Space]) -> str:
    how = FIGURES[name]
    return with_spread([how.factor * space.figures()[name] for space in spaces], how.digits) + how.unit


def change_sentences(results: Results) -> list[tuple[int, str]]:
    """(place of the entry, what training did to its space), for entries of which that is known."""
    spaces = [entry_spaces(entry) for entry in results.entries]
    return [(place, changed(before, after)) for place, (before, after) in enumerate(spaces) if before]


def changed(before: Sequence[Space], after: Sequence[Space]) -> str:
    """What training did to the spectrum and to alignment and uniformity, as the means over runs have it."""

    def means(name: str) -> tuple[float, float]:
        # Rounded as they are shown, so that the words say no more than the figures.
        how = FIGURES[name]
        first, second = (how.factor * float(np.mean([s.figures()[name] for s in spaces])) for spaces in (before, after))
        return round(first, how.digits), round(second, how.digits)

    def course(name: str) -> str:
        how = FIGURES[name]
        return " to ".join(number(value, how.digits) + how.unit for value in means(name))

    (rank, rank_after), (share, share_after) = means("effective_rank"), means("top_share")
    if rank_after > rank and share_after < share:
        verdict = "The spectrum got flatter"
    elif rank_after < rank and share_after > share:
        verdict = "The spectrum got steeper"
    elif rank_after == rank and share_after == share:
        verdict = "The spectrum stayed as it was"
    else:
        verdict = "The spectrum got neither flatter nor steeper as a whole"
    words = [f"{verdict}: effective rank {course('effective_rank')}, top share {course('top_share')}."]
    for name in ("alignment", "uniformity"):
        first, second = means(name)
        how = "got better" if second < first else "got worse" if second > first else "stayed"
        words.append(f"{name.capitalize()} {how}: {course(name)}.")
    return " ".join(words)
