"""Model a step's work and time on many chips: the formulas of benchmarks/README.md.

Nothing here was measured on such chips. Sizes are in bytes, times in seconds; FLOPs and sent bytes are those of one
chip in one step.
"""

from __future__ import annotations

import dataclasses
import math

from benchmarks.sizes import SIZES
from simcse_jax.planning.chips import Assumed, Chip, Sent, gathered

FLOAT32 = 4


@dataclasses.dataclass(frozen=True)
class Model:
    """Hold the sizes of an encoder with its head (dense + tanh), as in its config.json."""

    layers: int
    width: int
    ffn: int
    vocabulary: int = 30522
    positions: int = 512
    types: int = 2
    head_size: int = 64

    @property
    def matrices(self) -> int:
        """Return the parameters in matrices that multiply each token: four of attention and two of the FFN a layer."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.ffn)

    @property
    def of_layers(self) -> int:
        """Return the parameters of all layers: matrices, biases, two norms a layer."""
        d = self.width
        return self.matrices + self.layers * (4 * d + self.ffn + d + 4 * d)

    @property
    def around(self) -> int:
        """Return the parameters outside the layers: embedding tables and their norm, head."""
        d = self.width
        return (self.vocabulary + self.positions + self.types) * d + 2 * d + d * d + d

    @property
    def parameters(self) -> int:
        """Return the number of all parameters."""
        return self.of_layers + self.around

    def split(self, parts: int) -> tuple[int, int]:
        """Return how many parameters of (kernels, tables) are split over so many chips (training/mesh.py)."""
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
    """Describe what a step encodes: `texts` an example, `views` times each.

    Every anchor meets `candidates` of every example.
    """

    texts: int = 1
    views: int = 2
    candidates: int = 1
    tokens: float = 21.9  # mean of a sentence
    row_length: int = 64
    gradient_bytes: int = FLOAT32  # bytes of an element of the gradients that are sent
    kernel_bytes: int = FLOAT32  # bytes of an element of the kernels that are sent, in the encoder's precision
    chunks: int = 1  # parts in which a chip's groups are encoded (train.groups_at_once); 1 = all at once
    fsdp: bool = False  # parameters and gradients split over the slice or node within the step too


UNSUPERVISED = Recipe()
# 12.9: the mean over 8,976 NLI triplets, measured.
SUPERVISED = Recipe(texts=3, views=1, candidates=2, tokens=12.9)


def fill(groups: int) -> float:
    """Return the share of row positions that hold a token, when all groups have the rows of the fullest.

    Measured with this project's packer on the lengths of 11,914 sentences of the paper's corpus, in groups of 64: the
    fullest of 1, 8, 64, 512 and 4096 groups has 23, 24, 25, 26 and 27 rows in the median, where 21.9 would hold the
    tokens.
    """
    return 21.9 / (23 + math.log2(groups) / 3)


def encoder_flops(model: Model, recipe: Recipe, examples: int, groups: int) -> float:
    """Return the encoder's FLOPs of one chip in a step.

    Forward: 2 per parameter and position, and 4 T D a layer and position for attention. Backward: twice that, and
    attention's scores once more. Embedding look-ups cost none. In chunks, the forward pass runs twice.
    """
    sentences = examples * recipe.texts * recipe.views
    positions = sentences * recipe.tokens / fill(groups)
    attention = 4 * model.layers * model.width * recipe.row_length
    forward = positions * (2 * model.matrices + attention) + sentences * 2 * model.width**2
    return forward * (3 if recipe.chunks == 1 else 4) + positions * attention / 2


def loss_flops(model: Model, recipe: Recipe, examples: int, batch: int) -> float:
    """Return the loss's FLOPs of one chip: its anchors against all candidates, in full float32, in recomputed tiles.

    Four products: forward, forward again, and two backward.
    """
    return 4 * 2 * examples * batch * recipe.candidates * model.width


def gradients_sent(chip: Chip, chips: int, model: Model, recipe: Recipe, assumed: Assumed) -> Sent:
    """Return a step's whole exchange of gradients and parameters; an all-reduce is a scatter and a gather.

    Without fsdp it happens once a step, however many chunks: gradients of split parameters are scattered and the
    parameters gathered, in chunks as float32; gradients of the rest are all-reduced. With fsdp over a slice or node it
    happens layer by layer and chunk by chunk: within it, parameters (float32) are gathered and gradients scattered.
    One all-reduce over the other slices or nodes follows, of what is left, or a scatter and a gather, which send the
    same bytes.
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
    # A layer is gathered when it runs: forward, once more to recompute it in chunks, and backward. The backward pass
    # does not need the tables outside the layers, and the first pass over all chunks gathers them once.
    layers = gathered(chip, within, layer, assumed) * (recipe.chunks * model.layers * (2 + again))
    around = gathered(chip, within, FLOAT32 * model.around, assumed) * (1 + recipe.chunks * again)
    scattered = gathered(chip, within, size, assumed) + gathered(chip, within, 0, assumed) * model.layers
    return layers + around + scattered * recipe.chunks + across


def updated(chip: Chip, chips: int, model: Model, recipe: Recipe) -> float:
    """Return the parameters that one chip's optimizer updates; with fsdp beyond a slice or node at most this many."""
    if recipe.fsdp:
        return model.parameters / min(chips, chip.inner_size)
    split = sum(model.split(chips))
    return model.parameters - split + split / chips


@dataclasses.dataclass(frozen=True)
class Step:
    """Hold one step of the model: FLOPs, sent bytes and seconds of one chip."""

    chips: int
    examples: int  # of one chip
    encoder_flops: float
    loss_flops: float
    compute: float
    hbm: float
    embeddings: Sent
    gradients: Sent
    backward: float  # the part of `compute` that sending gradients could overlap with

    @property
    def communication(self) -> float:
        return self.embeddings.seconds + self.gradients.seconds

    @property
    def longest(self) -> float:
        """Return the seconds without any overlap: the sum."""
        return self.compute + self.hbm + self.communication

    @property
    def shortest(self) -> float:
        """Return the seconds if all gradients and parameters were sent during the backward pass.

        The embeddings cannot be: everything waits for them. The compiled step does not do this: without fsdp,
        parameters are gathered before the forward pass, and gradients exchanged after the backward pass. The optimizer
        cannot start before the last gradient is there either, as it clips by the norm of all of them.
        """
        exposed = max(0.0, self.gradients.seconds - self.backward)
        return self.compute + self.hbm + self.embeddings.seconds + exposed

    @property
    def share(self) -> float:
        """Return communication's share of the sum."""
        return self.communication / self.longest

    @property
    def binds(self) -> str:
        """Return the name of the largest of the three."""
        parts = {"compute": self.compute, "HBM": self.hbm, "communication": self.communication}
        return max(parts, key=lambda name: parts[name])


def step(chip: Chip, chips: int, examples: int, model: Model, recipe: Recipe, assumed: Assumed) -> Step:
    """Model a step of `examples` a chip on this many chips (a power of two)."""
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
    # In chunks the backward pass repeats the forward pass.
    backward = of_encoder * (2 / 3 if recipe.chunks == 1 else 3 / 4)
    return Step(chips, examples, encoder, loss, compute, moved / chip.hbm, embeddings, gradients, backward)
