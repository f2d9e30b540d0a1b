"""A step's work and time on many chips: the formulae of docs/scaling-model.md.

This is a model: nothing in it was measured on such chips. Sizes are in bytes, times in seconds; FLOPs and sent bytes
are those of one chip in one step.
"""

from __future__ import annotations

import dataclasses
import math

from benchmarks.chips import Assumed, Chip, Sent, gathered
from benchmarks.sizes import SIZES

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
    head_size: int = 64

    @property
    def matrices(self) -> int:
        """Parameters that each token is multiplied with: four of attention and two of the feed-forward, per layer."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.ffn)

    @property
    def of_layers(self) -> int:
        """Parameters of all layers: matrices, biases, two norms a layer."""
        d = self.width
        return self.matrices + self.layers * (4 * d + self.ffn + d + 4 * d)

    @property
    def around(self) -> int:
        """Parameters before and after the layers: tables and their norm, head."""
        d = self.width
        return (self.vocabulary + self.positions + self.types) * d + 2 * d + d * d + d

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.of_layers + self.around

    def split(self, parts: int) -> tuple[int, int]:
        """(kernels, tables): how many parameters of each kind are split over so many chips (training/mesh.py)."""
        d = self.width
        kernels_by_axis = (d, 3 * d * d), (d, d * self.ffn), (self.ffn, d * self.ffn)
        kernels = sum(self.layers * count for size, count in kernels_by_axis if size % (8 * parts) == 0)
        kernels += self.layers * d * d if self.head_size % (8 * parts) == 0 or d % (32 * parts) == 0 else 0
        splits_width = d % (32 * parts) == 0
        tables = (self.vocabulary + self.positions + self.types) * d if splits_width else 0
        return (kernels + (d * d if splits_width else 0), tables) if parts > 1 else (0, 0)


BERT, ROBERTA = (30522, 512, 2), (50265, 514, 1)
MODELS = {
    f"{family}-{size}": Model(of.num_hidden_layers, of.hidden_size, of.intermediate_size, *tables)
    for family, tables in (("bert", BERT), ("roberta", ROBERTA))
    for size, of in (("base", SIZES["bert-base"]), ("large", SIZES["bert-large"]))
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
    kernel_bytes: int = FLOAT32  # an element of the kernels, as they are sent: what the encoder computes in
    chunks: int = 1  # in how many a chip's groups are encoded (train.groups_at_once); 1 = all at once
    fsdp: bool = False  # parameters and gradients split over the slice or node within the step too


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

    Backward, attention's scores are made again. Looking up word embeddings costs none. In chunks, the forward pass is
    made twice.
    """
    sentences = examples * recipe.texts * recipe.views
    positions = sentences * recipe.tokens / fill(groups)
    attention = 4 * model.layers * model.width * recipe.row_length
    forward = positions * (2 * model.matrices + attention) + sentences * 2 * model.width**2
    return forward * (3 if recipe.chunks == 1 else 4) + positions * attention / 2


def loss_flops(model: Model, recipe: Recipe, examples: int, batch: int) -> float:
    """FLOPs of one chip: its anchors against all candidates, in full float32, in tiles that are computed again.

    Four products: forward, again, and two backward.
    """
    return 4 * 2 * examples * batch * recipe.candidates * model.width


def gradients_sent(chip: Chip, chips: int, model: Model, recipe: Recipe, assumed: Assumed) -> Sent:
    """All of a step's exchange of gradients and parameters. An all-reduce is a scatter and a gather.

    Without fsdp, once a step, however many chunks: gradients of what is split over the chips are scattered and its
    parameters gathered, in chunks as float32; gradients of the rest are all-reduced. With fsdp over a slice or node:
    layer by layer and chunk by chunk, parameters (float32) are gathered and gradients scattered within it; one
    all-reduce over the others follows, of what is left, or a scatter and a gather, which are the same bytes.
    """
    size = model.parameters * recipe.gradient_bytes
    reduced = gathered(chip, chips, size, assumed) * 2
    if not recipe.fsdp:
        kernels, tables = model.split(chips)
        if not kernels + tables:
            return reduced
        scattered = (kernels + tables) * recipe.gradient_bytes
        kernel_bytes = recipe.kernel_bytes if recipe.chunks == 1 else FLOAT32
        parts = gathered(chip, chips, scattered, assumed)
        whole = gathered(chip, chips, kernels * kernel_bytes + tables * FLOAT32, assumed)
        return parts + whole + gathered(chip, chips, size - scattered, assumed) * 2
    within = min(chips, chip.inner_size)
    across = reduced + gathered(chip, within, size, assumed) * -2
    again = recipe.chunks > 1
    layer = FLOAT32 * model.of_layers / model.layers
    # A layer is gathered when it runs: forward, in chunks once more to recompute, and backward. What is around the
    # layers the backward pass needs not, and the first pass over all chunks gathers it once.
    layers = gathered(chip, within, layer, assumed) * (recipe.chunks * model.layers * (2 + again))
    around = gathered(chip, within, FLOAT32 * model.around, assumed) * (1 + recipe.chunks * again)
    scattered = gathered(chip, within, size, assumed) + gathered(chip, within, 0, assumed) * model.layers
    return layers + around + scattered * recipe.chunks + across


def updated(chip: Chip, chips: int, model: Model, recipe: Recipe) -> float:
    """Parameters that one chip's optimizer updates; with fsdp beyond a slice or node at most so many."""
    if recipe.fsdp:
        return model.parameters / min(chips, chip.inner_size)
    split = sum(model.split(chips))
    return model.parameters - split + split / chips


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
    backward: float  # of `compute`: what gradients could travel behind

    @property
    def communication(self) -> float:
        return self.embeddings.seconds + self.gradients.seconds

    @property
    def longest(self) -> float:
        """Seconds when nothing is hidden: the sum."""
        return self.compute + self.hbm + self.communication

    @property
    def shortest(self) -> float:
        """Seconds if gradients and parameters travelled behind the passes, all counted against the backward one.

        The embeddings cannot: all wait for them. It is not what is compiled: without fsdp, parameters are gathered
        before the forward pass, and gradients exchanged after the backward one. Nor can the optimizer start before
        the last gradient is there, as it clips by the norm of all of them.
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
    logits = FLOAT32 * examples * batch * recipe.candidates
    # AdamW reads parameter, gradient and two moments and writes all but the gradient.
    moved = (16 + 12) * updated(chip, chips, model, recipe) + assumed.logit_passes * logits
    embeddings = gathered(chip, chips, batch * recipe.candidates * model.width * FLOAT32, assumed) * 2
    gradients = gradients_sent(chip, chips, model, recipe, assumed)
    # In chunks the forward pass is made again within the backward one.
    backward = of_encoder * (2 / 3 if recipe.chunks == 1 else 3 / 4)
    return Step(chips, examples, encoder, loss, compute, moved / chip.hbm, embeddings, gradients, backward)
