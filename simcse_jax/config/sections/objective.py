"""State the keys of the losses that need no teacher: contrastive ones, graded pairs, masked language modelling."""

from __future__ import annotations

import dataclasses

from simcse_jax.config.keys import When, key, parse_numbers
from simcse_jax.config.sections.teacher import TEACHER
from simcse_jax.objective.losses import LOSSES
from simcse_jax.objective.own_loss import add_loss

NO_LOSS = "none"
_MLM = When("mlm.weight")


def _losses_that_read(name: str) -> tuple[str, ...]:
    """Return the losses that read this key of the section `objective`."""
    return tuple(loss for loss, described in LOSSES.items() if name.removeprefix("objective.") in described.keys)


_READ_BY_LOSS = When("objective.loss", _losses_that_read)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Keys of the contrastive loss. Which of them a loss reads, its own file says."""

    loss: str = key(
        "info_nce",
        """"info_nce": the paper's; "triplet": FaceNet's, of squared distances on the unit sphere; "margin_ranking": of
        similarities; "sigmoid": SigLIP's; "cosent" and "angle" (AnglE): of graded pairs (data.scores); "none": nothing
        but masked language modelling (mlm.weight above 0), a teacher (teacher.name), or both. Or MODULE:NAME, a
        function of your own (CONTRIBUTING.md, A loss).""",
        one_of=lambda: (*LOSSES, NO_LOSS),
        add_own=add_loss,
    )
    temperature: float = key(0.05, "Similarities are divided by it.", above=0, effective=_READ_BY_LOSS)
    hard_negative_weight: float = key(
        1.0,
        """Weight of an anchor's own hard negatives in the denominator, the weight itself and not its logarithm; 1: as
        other negatives.""",
        above=0,
        effective=_READ_BY_LOSS,
    )
    similarity: str = key(
        "cosine", "Cosine similarity or dot product.", one_of=("cosine", "dot"), effective=_READ_BY_LOSS
    )
    learned_temperature: bool = key(
        False,
        """Train the temperature, and the bias of the sigmoid loss, from the given values on. SigLIP starts at 0.1 and
        -10.""",
        effective=_READ_BY_LOSS,
    )
    learning_rate: float = key(
        0.0,
        """Learning rate of the learned temperature and bias, with the optimizer's schedule; 0: the optimizer's, which
        hardly moves them where it suits a pretrained encoder. SigLIP: 1e-3.""",
        at_least=0,
        effective=When("objective.learned_temperature"),
    )
    bias: float = key(-10.0, "Added to every logit of the sigmoid loss.", effective=_READ_BY_LOSS)
    margin: float = key(0.2, "Margin between positive and negative. FaceNet: 0.2.", above=0, effective=_READ_BY_LOSS)
    mining: str = key(
        "semi_hard",
        """Negatives of a triplet: "all", the "hardest" (closest) one, or the "semi_hard" one, the closest of those
        farther away than the positive.""",
        one_of=("all", "semi_hard", "hardest"),
        effective=_READ_BY_LOSS,
    )
    widths: str = key(
        "",
        """Matryoshka widths: "768,256,64" is the mean of the loss over the first 768, 256 and 64 features; "": all
        features only.""",
        effective=_READ_BY_LOSS,
        example="768,256,64",
    )
    layers: str = key(
        "",
        """2-D Matryoshka: "2,4" is the mean of the loss on the embeddings after layer 2 and after layer 4, counted from
        1, the last layer among them; "": after the last alone. `export --keep_layers` then makes the smaller model.""",
        effective=(_READ_BY_LOSS, When("model.pooler", ("avg",)), When("model.train_pooler", ("avg",))),
        example="2,4",
    )
    queue: int = key(
        0,
        "Embeddings of earlier positives that are kept as further negatives (MoCo); 0: none.",
        at_least=0,
        effective=(When("objective.loss", ("info_nce",)), When("model.second_encoder", ("momentum",))),
        example=1024,
    )
    symmetric: bool = key(False, "Average with the loss of positives against anchors.", effective=_READ_BY_LOSS)
    mask_duplicates: bool = key(
        True, "Leave out candidates whose text equals the anchor's or its positive's.", effective=_READ_BY_LOSS
    )
    false_negatives: str = key(
        "",
        """Leave out candidates too similar to the anchor to be its negatives: of a cosine above s(p) - m ("absolute"),
        above s(p) - m |s(p)| ("relative"), or above m ("fixed"), with s(p) the cosine of the positive and m the
        false_negative_margin. "": no candidate but those of equal text.""",
        one_of=("", "absolute", "relative", "fixed"),
        effective=_READ_BY_LOSS,
        example="absolute",
    )
    false_negative_margin: float = key(
        0.0,
        "The m of objective.false_negatives; with 0, what is closer than the positive is left out.",
        effective=When("objective.false_negatives"),
        example=0.1,
    )
    guide: bool = key(
        False,
        """Let the teacher's vectors, not the embeddings, decide what objective.false_negatives leaves out (GIST). The
        start model is its own guide with teacher.name = model.name.""",
        effective=(When("objective.false_negatives"), TEACHER),
    )
    hardness: float = key(
        0.0,
        """Weigh a negative by e^(hardness cos), without a gradient through that weight (Robinson et al. 2021); 0: all
        alike.""",
        at_least=0,
        effective=_READ_BY_LOSS,
        example=1.0,
    )
    hardness_of: str = key(
        "all",
        """The negatives that are weighed by hardness: "all", those of the "batch", or an anchor's "own" hard
        negatives.""",
        one_of=("all", "batch", "own"),
        effective=When("objective.hardness"),
    )
    hardness_normalized: bool = key(
        True,
        "Divide these weights by their mean over an anchor's negatives, so that they only shift weight between them.",
        effective=When("objective.hardness"),
    )
    tile: int = key(
        1024,
        """Similarities are computed, and held, for at most this many anchors against the candidates of as many examples
        at a time (against all candidates where the loss is not info_nce), so memory grows with the batch and not with
        its square; 0: all of a device's at once. Where it does not divide the batch, tiles are smaller, of one size and
        padded.""",
        at_least=0,
        layout=True,
    )

    @property
    def matryoshka_widths(self) -> tuple[int, ...]:
        """Return the widths of a Matryoshka loss; empty without one."""
        return parse_numbers(self.widths)

    @property
    def matryoshka_layers(self) -> tuple[int, ...]:
        """Return the layers of a 2-D Matryoshka loss, from 1, the last one last; empty without one."""
        return tuple(sorted(parse_numbers(self.layers)))


@dataclasses.dataclass(frozen=True)
class MlmConfig:
    """Keys of masked language modelling."""

    weight: float = key(
        0.0,
        """Weight of a masked-language-modelling loss beside the contrastive one, on masked copies of all texts of a
        batch, changed ones too; 0: none. The paper's appendix D tries 0.01, 0.1 and 1. The head comes with the
        pretrained weights.""",
        at_least=0,
        example=0.1,
    )
    rate: float = key(
        0.15,
        "Share of the tokens to predict; 80 % of them are masked, 10 % replaced by random tokens.",
        above=0,
        below=1,
        effective=_MLM,
    )
    whole_word: bool = key(False, "Choose whole words, long and short ones alike, not pieces of words.", effective=_MLM)
    validation: str = key(
        "",
        """Held-out text, given like data.files and with the columns of data.columns. The perplexity of its whole
        batches is logged with each evaluation, and chooses the best checkpoint where eval.data is empty; "": none.""",
        effective=_MLM,
        resumable=True,
        local=True,
    )
