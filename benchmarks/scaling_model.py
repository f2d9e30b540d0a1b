"""A step's work and time on many chips: the formulae of docs/scaling-model.md.

This is a model: nothing in it was measured on such chips. Sizes are in bytes, times in seconds; FLOPs and sent bytes
are those of one chip in one step.
"""

from __future__ import annotations

import dataclasses
import math

from benchmarks.chips import Assumed, Chip, Sent, gathered

FLOAT32 = 4


@dataclasses.dataclass(frozen=True)
class Model:
    """The sizes of an encoder with its head (dense + tanh), as in its config.json."""

    layers: int
    width: int
    ffn: int
    vocabulary: int = 30522
    positions: int = 512
    types: int = 2

    @property
    def matrices(self) -> int:
        """Parameters that each token is multiplied with: four of attention and two of the feed-forward, per layer."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.ffn)

    @property
    def parameters(self) -> int:
        """All of them: tables and their norm, matrices, biases, two norms a layer, head."""
        d = self.width
        tables = (self.vocabulary + self.positions + self.types) * d + 2 * d
        return tables + self.matrices + self.layers * (4 * d + self.ffn + d + 4 * d) + d * d + d


MODELS = {
    "bert-base": Model(12, 768, 3072),
    "bert-large": Model(24, 1024, 4096),
    "roberta-base": Model(12, 768, 3072, 50265, 514, 1),
    "roberta-large": Model(24, 1024, 4096, 50265, 514, 1),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a step encodes: `texts` an example, `views` times; every anchor meets `candidates` of every example."""

    texts: int = 1
    views: int = 2
    candidates: int = 1
    tokens: float = 21.9  # a sentence's mean
    row_length: int = 64
    gradient_bytes: int = FLOAT32  # an element of the gradients, as they are sent
    reductions: int = 1  # how often a step sends them
    fsdp: bool = False  # parameters and optimizer split over the slice or node


UNSUPERVISED = Recipe()
# 12.9: the mean over 8,976 NLI triplets, measured.
SUPERVISED = Recipe(texts=3, views=1, candidates=2, tokens=12.9)


def fill(groups: int) -> float:
    """The share of row positions that hold a token, when all groups have the rows of the fullest.

    Measured with this project's packer on the lengths of 11,914 sentences of the paper's corpus, groups of 64: median
    of the fullest of 1, 8, 64, 512, 4096 groups: 23, 24, 25, 26, 27 rows, where 21.9 would hold the tokens.
    """
    return 21.9 / (23 + math.log2(groups) / 3)


def encoder_flops(model: Model, recipe: Recipe, examples: int, groups: int) -> float:
    """FLOPs of one chip: forward 2 per parameter and position, attention 4 T D a layer and position, backward twice it.

    Looking up word embeddings costs none. Add a third where `groups_at_once` recomputes the forward pass.
    """
    sentences = examples * recipe.texts * recipe.views
    positions = sentences * recipe.tokens / fill(groups)
    attention = 4 * model.layers * model.width * recipe.row_length
    return 3 * (positions * (2 * model.matrices + attention) + sentences * 2 * model.width**2)


def loss_flops(model: Model, recipe: Recipe, examples: int, batch: int) -> float:
    """FLOPs of one chip: its anchors against all candidates, once forward and twice backward, in full float32."""
    return 3 * 2 * examples * batch * recipe.candidates * model.width


def gradients_sent(chip: Chip, chips: int, model: Model, recipe: Recipe, assumed: Assumed) -> Sent:
    """All of a step's exchange of gradients, and of parameters with fsdp. An all-reduce is a scatter and a gather.

    A layer's gradients go by themselves, so latencies count layers + 1 times.
    """
    size = model.parameters * recipe.gradient_bytes
    scatter = gathered(chip, chips, size, assumed)
    latencies = gathered(chip, chips, 0, assumed) * model.layers
    reduced = (scatter + latencies) * 2 * recipe.reductions
    if not recipe.fsdp:
        return reduced
    # Within the slice: parameters (float32) gathered forward and again backward in place of the all-reduce's gather.
    within = min(chips, chip.inner_size)
    parameters = gathered(chip, within, model.parameters * FLOAT32, assumed)
    replaced = gathered(chip, within, size, assumed)
    again = gathered(chip, within, 0, assumed) * model.layers
    return reduced + (parameters * 2 + again + replaced * -1) * recipe.reductions


@dataclasses.dataclass(frozen=True)
class Step:
    """One step as the model sees it: FLOPs, sent bytes and seconds of one chip."""

    chips: int
    examples: int  # of one chip
    encoder_flops: float
    loss_flops: float
    compute: float
    hbm: float
    embeddings: Sent
    gradients: Sent
    backward: float  # of `compute`: what gradients can travel behind
    needed: float  # bytes of HBM that neither packing nor groups_at_once saves

    @property
    def communication(self) -> float:
        return self.embeddings.seconds + self.gradients.seconds

    @property
    def longest(self) -> float:
        """Seconds when nothing is hidden: the sum."""
        return self.compute + self.hbm + self.communication

    @property
    def shortest(self) -> float:
        """Seconds when gradients travel behind the backward pass. The embeddings cannot: all wait for them.

        Nor can the optimizer start before the last gradient is there, as it clips by the norm of all of them.
        """
        exposed = max(0.0, self.gradients.seconds - self.backward)
        return self.compute + self.hbm + self.embeddings.seconds + exposed

    @property
    def share(self) -> float:
        """Communication's share of the sum."""
        return self.communication / self.longest

    @property
    def binds(self) -> str:
        """The largest of the three."""
        parts = {"compute": self.compute, "HBM": self.hbm, "communication": self.communication}
        return max(parts, key=lambda name: parts[name])


def step(chip: Chip, chips: int, examples: int, model: Model, recipe: Recipe, assumed: Assumed) -> Step:
    """A step of `examples` a chip on this many chips (a power of two)."""
    batch = examples * chips
    encoder = encoder_flops(model, recipe, examples, max(chips, batch // 64))
    loss = loss_flops(model, recipe, examples, batch)
    of_encoder = encoder / (chip.peak * assumed.peak_share)
    compute = of_encoder + loss / (chip.float32_peak * assumed.peak_share)
    split = min(chips, chip.inner_size) if recipe.fsdp else 1
    logits = FLOAT32 * examples * batch * recipe.candidates
    # AdamW reads parameter, gradient and two moments and writes all but the gradient.
    moved = (16 + 12) * model.parameters / split + assumed.logit_passes * logits
    embeddings = gathered(chip, chips, batch * recipe.candidates * model.width * FLOAT32, assumed) * 2
    gradients = gradients_sent(chip, chips, model, recipe, assumed)
    # State and gradients, and the logits with their gradient and a temporary or two of their size.
    needed = 16 * model.parameters / split + 4 * logits
    return Step(
        chips, examples, encoder, loss, compute, moved / chip.hbm, embeddings, gradients, of_encoder * 2 / 3, needed
    )
