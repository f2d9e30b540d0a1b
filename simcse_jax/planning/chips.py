"""Estimate what collectives cost on chips, from published figures, stated assumptions and three formulas.

Nothing here was measured on the chips named. Sizes are in bytes, times in seconds; sent bytes are those of one chip.
"""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Assumed:
    """Hold what is assumed and not published; change a value to see what depends on it."""

    peak_share: float = 0.4  # share of a chip's peak that is reached; padding counts as work
    link_share: float = 0.8  # share of a link's published bandwidth that is reached
    launch: float = 5e-6  # seconds before a collective's first byte
    logit_passes: int = 10  # times that the logits pass through HBM in a step, forward and backward


@dataclasses.dataclass(frozen=True)
class Chip:
    """Hold the published figures of one chip and how its kind is connected.

    Bandwidths are in bytes a second and in one direction.
    """

    name: str
    peak: float  # FLOP/s, bfloat16, dense
    float32_peak: float  # FLOP/s of products in full float32 precision
    hbm: float
    inner_size: int  # chips that the fast links join: a TPU slice, a GPU node
    inner: float  # bandwidth of all fast links of a chip together
    outer: float  # a chip's share of the network between slices or nodes
    inner_hop: float  # assumed seconds from one chip to the next over the fast links
    outer_hop: float  # assumed seconds from one slice or node to another
    links: int = 0  # fast links of a chip in a torus, together `inner`; 0 = a switch joins every pair
    ring: int = 0  # length of the shortest axis of a torus that closes to a ring


CHIPS = {
    # cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB, 819 GB/s, pods of 256 in a 2D torus. ICI: older editions say
    # 1,600 Gb/s a chip, newer ones 400 GB/s bidirectional, so 200 GB/s is one direction, over 4 links of 50 GB/s.
    # Data-centre network: 6.4 Tb/s a pod of 256, 25 Gb/s a chip. Float32 products: six bfloat16 ones
    # (jax.lax.Precision.HIGHEST).
    "v5e": Chip("TPU v5e", 197e12, 197e12 / 6, 819e9, 256, 200e9, 25e9 / 8, 1e-6, 50e-6, links=4, ring=16),
    # cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GB, 2,765 GB/s, ICI 1,200 GB/s bidirectional over the 6 links of a
    # 3D torus, of which cubes of 4 x 4 x 4 close the axes; 8,960 chips a pod; 50 Gb/s a chip between slices.
    "v5p": Chip("TPU v5p", 459e12, 459e12 / 6, 2765e9, 8960, 600e9, 50e9 / 8, 1e-6, 50e-6, links=6, ring=4),
    # cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB, 1,600 GB/s, ICI 3,200 Gb/s over 4 links of a 2D torus, pods of
    # 256; 25.6 Tb/s a pod between slices, 100 Gb/s a chip.
    "v6e": Chip("TPU v6e", 918e12, 918e12 / 6, 1600e9, 256, 400e9, 100e9 / 8, 1e-6, 50e-6, links=4, ring=16),
    # nvidia.com/en-us/data-center/h100 (SXM): 1,979 TFLOP/s with sparsity, so 989 dense; float32 67 TFLOP/s; 80 GB,
    # 3.35 TB/s; NVLink 900 GB/s, both directions together. DGX H100: 8 GPUs, a 400 Gb/s network card each.
    "h100": Chip("H100 SXM", 989e12, 67e12, 3.35e12, 8, 450e9, 50e9, 2e-6, 10e-6),
    # nvidia.com/en-us/data-center/a100 (SXM, 80 GB): bfloat16 312 TFLOP/s, float32 19.5; 2,039 GB/s; NVLink 600 GB/s,
    # both directions together. DGX A100: 8 GPUs, a 200 Gb/s network card each.
    "a100": Chip("A100 SXM", 312e12, 19.5e12, 2.039e12, 8, 300e9, 25e9, 2e-6, 10e-6),
    # nvidia.com/en-us/data-center/h200: as the H100 but 141 GB, 4.8 TB/s.
    "h200": Chip("H200 SXM", 989e12, 67e12, 4.8e12, 8, 450e9, 50e9, 2e-6, 10e-6),
}


@dataclasses.dataclass(frozen=True)
class Sent:
    """Hold the bytes that one chip sends over the fast links and the outer network, and the seconds that both take."""

    inner: float = 0.0
    outer: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.inner + other.inner, self.outer + other.outer, self.seconds + other.seconds)

    def __mul__(self, times: float) -> Sent:
        return Sent(self.inner * times, self.outer * times, self.seconds * times)


def torus_shape(chips: int, axes: int = 2) -> tuple[int, ...]:
    """Return the most nearly equal powers of two, shortest first.

    Those are the shapes of TPU slices, for v5e 2 x 4 to 16 x 16.
    """
    exponent = chips.bit_length() - 1
    return tuple(1 << (exponent + axis) // axes for axis in range(axes))


def fast_links(chip: Chip, chips: int, shape: tuple[int, ...] = ()) -> tuple[float, int]:
    """Return the bandwidth of one chip's fast links in a collective, and the hops to the farthest chip.

    chips: how many take part; shape: their axes in a torus, by default as nearly equal as possible. A v5e axis of 16
    closes to a ring and sends both ways; a shorter one is a line, whose last chip has one link. Between GPUs a switch
    gives every pair the whole bandwidth, and a ring passes every GPU.
    """
    if not chip.links:
        return chip.inner, chips - 1
    axes = [size for size in shape or torus_shape(chips, chip.links // 2) if size > 1]
    links = sum(2 if size >= chip.ring else 1 for size in axes)
    return chip.inner * links / chip.links, sum(size // 2 if size >= chip.ring else size - 1 for size in axes)


def gathered(chip: Chip, chips: int, size: float, assumed: Assumed, shape: tuple[int, ...] = ()) -> Sent:
    """Estimate one all-gather to `size` bytes on every chip, or one reduce-scatter from them.

    Either sends (n - 1) / n of the size. Over several slices or nodes, it first runs among the chips at the same place
    in each, then within each. shape: the axes of a slice (see `fast_links`).
    """
    if chips == 1:
        return Sent()
    within = min(chips, chip.inner_size)
    parts = chips // within
    inner, outer = size * (within - 1) / within, size * (parts - 1) / chips
    bandwidth, hops = fast_links(chip, within, shape)
    seconds = assumed.launch + hops * chip.inner_hop + inner / (bandwidth * assumed.link_share)
    # A switched network lets the distance double at each step, so log2 steps send no byte more than a ring.
    seconds += math.ceil(math.log2(parts)) * chip.outer_hop + outer / (chip.outer * assumed.link_share)
    return Sent(inner, outer, seconds)
