"""Bound the time of a compiled step from below, by what it does and by published figures of its chip."""

from __future__ import annotations

import dataclasses

from simcse_jax.planning.chips import CHIPS, Assumed, Chip, Sent, gathered
from simcse_jax.planning.collectives import Collective, collectives
from simcse_jax.planning.hlo_costs import Part, parts

PUBLISHED = Assumed(peak_share=1.0, link_share=1.0, launch=0.0)
KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA A100-SXM4-80GB": "a100",
}


def chip_of(device_kind: str) -> Chip | None:
    """Return the published figures of a device by the name that its driver gives it, None where they are not known."""
    return CHIPS[KINDS[device_kind]] if device_kind in KINDS else None


@dataclasses.dataclass(frozen=True)
class Work:
    """Hold what one chip does in one step."""

    flops: float  # of products
    exact_flops: float  # the part in float32 at full precision
    accessed: float  # bytes, in whichever memory
    hbm: float  # bytes through main memory, padding included
    unknown_loops: int  # instructions in loops of unknown length, counted once
    xla_flops: float  # XLA's own counts, with a loop's body counted once
    xla_accessed: float
    accessed_once: float  # as `accessed`, with a loop's body counted once, to compare with XLA's
    memory: dict[str, int]
    sent: list[Collective]
    parts: list[Part]


def work(text: str, cost: dict[str, float], memory: dict[str, int], is_tpu: bool, chips: int) -> Work:
    """Return the work of a compiled program from its text, `cost_analysis()` and `memory_of`.

    One chip alone sends nothing.
    """
    found = parts(text, is_tpu)
    return Work(
        flops=sum(part.flops * part.runs for part in found),
        exact_flops=sum(part.exact_flops * part.runs for part in found),
        accessed=sum(part.accessed * part.runs for part in found),
        hbm=sum(part.hbm * part.runs for part in found),
        unknown_loops=sum(part.times is None for part in found),
        xla_flops=float(cost.get("flops", 0.0)),
        xla_accessed=float(cost.get("bytes accessed", 0.0)),
        accessed_once=sum(part.accessed for part in found),
        memory=memory,
        sent=collectives(text) if chips > 1 else [],
        parts=found,
    )


@dataclasses.dataclass(frozen=True)
class Bound:
    """Hold the seconds of one step that a chip's published figures allow, by resource."""

    arithmetic: float
    hbm: float
    links: float

    @property
    def seconds(self) -> float:
        return max(self.arithmetic, self.hbm, self.links)

    @property
    def binds(self) -> str:
        sides = {"arithmetic": self.arithmetic, "HBM": self.hbm, "links": self.links}
        return max(sides, key=lambda side: sides[side])


def bound(done: Work, chip: Chip, shape: tuple[int, ...], chips: int) -> Bound:
    """Return the bound of this work; shape: the axes of the chips in a torus.

    Products of float32 in full precision run at the chip's rate for those, all others at that of bfloat16, to which
    TPUs round factors by default.
    """
    sent = sum((sent_by(one, chip, shape, chips) for one in done.sent), Sent())
    arithmetic = (done.flops - done.exact_flops) / chip.peak + done.exact_flops / chip.float32_peak
    return Bound(arithmetic, done.hbm / chip.hbm, sent.seconds)


def sent_by(one: Collective, chip: Chip, shape: tuple[int, ...], chips: int) -> Sent:
    """Return what a collective over all chips sends; an all-reduce is a scatter and a gather."""
    size = one.bytes * chips if one.kind == "reduce-scatter" else one.bytes
    passes = 2 if one.kind == "all-reduce" else 1
    return gathered(chip, chips, size, PUBLISHED, shape) * (passes * (1 if one.times is None else one.times))
