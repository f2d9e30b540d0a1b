"""State every key of a recipe once: default, range, meaning, when it has an effect, layout or mathematics.

`configs/base.py`, the checks, `--help-config` and what a run compares when it resumes all follow from here. The
defaults are the paper's, and its code's, for unsupervised BERT-base (docs/paper.md).

A new key needs its line here, and nothing else. Relations between keys beyond `effective` are checked in checks.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

from simcse_jax.config.keys import Key, When, key, section_keys
from simcse_jax.data.own_positive import add_positive
from simcse_jax.data.positives import POSITIVES, WINDOWS
from simcse_jax.encoder.architecture import ATTENTIONS, CUTOFFS, PRODUCTS
from simcse_jax.encoder.pooling import POOLERS
from simcse_jax.objective.distillation import DISTILLATIONS
from simcse_jax.objective.losses import LOSSES, graded_losses
from simcse_jax.objective.own_loss import add_loss

DURATIONS = ("steps", "epochs", "examples")
NO_LOSS = "none"
_CONTRASTIVE = When("objective.loss", lambda _: tuple(LOSSES))
_RANDOM = When("model.init", ("random",))
_MLM = When("mlm.weight")
_TEACHER = When("teacher.name")
# What `training/optimizer.py` has.
OPTIMIZERS = ("adamw", "lion", "adafactor", "muon")
SCHEDULES = ("linear", "cosine", "constant", "warmup_stable_decay")
DECAYED = ("matrices", "kernels", "all")
_ADAM_OR_LION = When("optimizer.name", ("adamw", "lion", "muon"))


def parse_numbers(value: str) -> tuple[int, ...]:
    """Return the numbers of a comma-separated value, such as that of model.keep_layers."""
    return tuple(int(number) for number in value.split(",") if number.strip())


def _losses_that_read(name: str) -> tuple[str, ...]:
    """Return the losses that read this key of the section `objective`."""
    return tuple(loss for loss, described in LOSSES.items() if name.removeprefix("objective.") in described.keys)


def _positives_that_read(name: str) -> tuple[str, ...]:
    """Return the positives that read this key of the section `data`."""
    return tuple(kind for kind, positive in POSITIVES.items() if name.removeprefix("data.") in positive.keys)


def _prompted(_: str) -> tuple[str, ...]:
    """Return the positives that go together with prompts."""
    return tuple(kind for kind, positive in POSITIVES.items() if positive.takes_prompts)


_READ_BY_LOSS = When("objective.loss", _losses_that_read)
_READ_BY_POSITIVE = When("data.positive", _positives_that_read)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Keys of the encoder."""

    name: str = key(
        "bert-base-uncased",
        """A Hugging Face folder or Hub name. With model.init = "random" it gives sizes and tokenizer only, and "" means
        BERT.""",
    )
    init: str = key(
        "pretrained",
        """"pretrained": weights from model.name; "random": new weights, sizes from model.name, or from the keys below
        where these are not 0; "run:DIR": the parameters of the best evaluation of another run, "run:DIR@STEP": those of
        a step that it has kept, for an encoder of its sizes and tokenizer, which model.name gives.""",
        one_of=("pretrained", "random"),
        form="run:DIR[@STEP]",
    )
    keep_layers: str = key(
        "",
        """The layers of model.name to start from, by number from 0, ascending: "0,3,6,9" makes an encoder of four; "":
        all of them. The run and what it exports have only these.""",
        effective=When("model.init", ("pretrained",)),
        example="0,2",
    )
    num_hidden_layers: int = key(0, "Layers; 0: as model.name.", at_least=0, effective=_RANDOM)
    hidden_size: int = key(0, "Width of the hidden states; 0: as model.name.", at_least=0, effective=_RANDOM)
    num_attention_heads: int = key(0, "Attention heads of a layer; 0: as model.name.", at_least=0, effective=_RANDOM)
    intermediate_size: int = key(0, "Width within the MLP of a layer; 0: as model.name.", at_least=0, effective=_RANDOM)
    tokenizer: str = key(
        "",
        """"": the tokenizer of model.name; a folder; or "train": a WordPiece tokenizer of vocab_size entries, trained
        on data.files (needs model.init = "random").""",
    )
    vocab_size: int = key(
        0,
        'Entries of the tokenizer that model.tokenizer = "train" makes, at least 100.',
        at_least=0,
        effective=When("model.tokenizer", ("train",)),
        example=8000,
    )
    pooler: str = key(
        "cls_before_pooler",
        """How hidden states become the embedding of a text at test time; recorded in the checkpoint and the exported
        model.""",
        one_of=POOLERS,
        example="cls",
    )
    train_pooler: str = key(
        "cls",
        'The same in training: "cls" puts a new dense + tanh head on the first token (the MLP of the paper).',
        one_of=POOLERS,
    )
    second_encoder: str = key(
        "none",
        """Which encoder encodes positives and hard negatives. "none": the encoder itself; "copy": one with parameters
        of its own, equal at the start (dual encoder); "momentum": an exponential moving average of the first one
        (MoCo). Evaluated and exported is the first encoder.""",
        one_of=("none", "copy", "momentum"),
        effective=_CONTRASTIVE,
        example="copy",
    )
    momentum: float = key(
        0.999,
        "Decay of the moving average: a step takes the share 1 - momentum of the first encoder.",
        at_least=0,
        below=1,
        effective=When("model.second_encoder", ("momentum",)),
    )
    dropout: float = key(
        0.1,
        "Dropout rate, the same everywhere in the encoder. In the paper's table 0.1 is best, and 0 collapses.",
        at_least=0,
        below=1,
    )
    same_mask: bool = key(
        False,
        """Use one dropout mask for both views of a sentence: the collapse of the paper (its table, "fixed 0.1"), for
        study.""",
        effective=(When("data.positive", ("dropout",)), _CONTRASTIVE),
    )
    cutoff: str = key(
        "",
        """Also zero parts of the input embeddings in training: "token" (whole tokens), "feature" (the same features of
        all tokens of a sentence) or "span" (consecutive tokens); "": nothing. With model.dropout = 0 it is the only
        noise.""",
        one_of=CUTOFFS,
        effective=_CONTRASTIVE,
        example="token",
    )
    cutoff_rate: float = key(
        0.1, "The share that model.cutoff zeroes.", above=0, below=1, effective=When("model.cutoff")
    )
    dtype: str = key(
        "float32",
        'Type of the arithmetic. With "bfloat16" parameters stay float32; "float64" needs JAX_ENABLE_X64=1.',
        one_of=("float32", "bfloat16", "float64"),
    )
    products: str = key(
        "float32",
        """Factors of the encoder's matrix products. "float32": of model.dtype, as the device multiplies them;
        "bfloat16": rounded to bfloat16, forward and backward, with results of float32 and all else as before, which
        CPUs with matrix units multiply several times faster; "auto": "bfloat16" on a CPU with such units (AMX,
        AVX512-BF16), "float32" on any other device. A run records which one it was, and resumes with that.""",
        one_of=PRODUCTS,
        effective=When("model.dtype", ("float32", "bfloat16")),
    )
    unroll: str = key(
        "auto",
        """Compile layers as straight-line code ("on", slower to compile) or as a loop ("off"). "auto": on for CPUs,
        where it is a fifth faster, and for GPUs without mesh.fsdp, where it moves a third fewer bytes; off for TPUs,
        where it moves more (benchmarks/README.md), and with model.remat.""",
        one_of=("auto", "on", "off"),
        layout=True,
    )
    attention: str = key(
        "auto",
        """How attention is computed. "plain": by XLA; "fused", on GPUs: in kernels, which write no matrix of scores to
        memory and skip the blocks of a long row that hold other sentences; "auto": plain, until the kernels have been
        run on a GPU.""",
        one_of=ATTENTIONS,
        layout=True,
    )
    remat: bool = key(False, "Recompute layers in the backward pass, to save memory.", layout=True)

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Return the layers to keep, () for all; ValueError where keep_layers is wrong."""
        kept = parse_numbers(self.keep_layers)
        if list(kept) != sorted({*kept}) or min(kept, default=0) < 0:
            raise ValueError(self.keep_layers)
        return kept

    @property
    def has_head(self) -> bool:
        """Return whether a dense + tanh head is trained or used."""
        return "cls" in (self.pooler, self.train_pooler)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Keys of the training data."""

    files: str = key(
        "",
        """Comma-separated files or globs (.txt, .csv, .tsv, .jsonl, .parquet; text also .gz, .xz),
        hf://datasets/OWNER/NAME/FILE, or a Hub data set OWNER/NAME[:config][:split]. Where a run resumes, their content
        must be the same, not their place.""",
        resumable=True,
        local=True,
        example="sentences.txt",
    )
    columns: str = key(
        "",
        """Comma-separated column names: sentence[,positive[,hard negative ...]]. "": sent0, sent1, hard_neg* where the
        header has them, else the columns of text without ids, labels and scores (docs/data.md).""",
    )
    score_range: str = key(
        "",
        """"LOWEST,HIGHEST": scores beyond are refused; "": every finite number is allowed.""",
        effective=When("objective.loss", lambda _: graded_losses()),
        example="0,5",
    )
    scores: str = key(
        "",
        """The column of scores of graded pairs, numbers of any scale, of which the order counts: what a graded loss
        ("cosent", "angle") learns.""",
        effective=When("objective.loss", lambda _: graded_losses()),
        example="score",
    )
    prompts: str = key(
        "",
        """Comma-separated words that are put before the texts of each column, in the order of data.columns; the last
        are those of all further columns. Spaces count; a prompt with a comma stands in double quotes. The model keeps
        them, as "query" (the first column's, its default) and "document" (the second's).""",
        effective=When("data.positive", _prompted),
        example="query: ,passage: ",
    )
    include_prompt: bool = key(
        True,
        "Pool the tokens of a prompt with those of its text; False: leave them out, and the first special token too.",
        effective=When("data.prompts"),
    )
    positive: str = key(
        "dropout",
        """How positives are made, or MODULE:NAME, a function of your own (CONTRIBUTING.md, A positive). "dropout": the
        same sentence encoded twice; "columns": pairs or triplets from the file; "next_sentence": a following sentence,
        of .txt with a blank line between documents; or a changed copy: "crop" (words cut off at the ends),
        "word_deletion", "synonym", "mask" (tokens predicted by the pretrained masked language model), "repetition"
        (repeated tokens, as in ESimCSE).""",
        one_of=lambda: tuple(POSITIVES),
        add_own=add_positive,
    )
    rate: float = key(
        0.1,
        """The share of the words (or tokens) that a changed copy changes. 0 with word_deletion and synonym: exactly one
        word.""",
        at_least=0,
        below=1,
        effective=_READ_BY_POSITIVE,
    )
    window: int = key(
        1,
        "The positive is drawn from this many following sentences of the document.",
        one_of=WINDOWS,
        effective=_READ_BY_POSITIVE,
    )
    synonyms: str = key(
        "",
        'A file of lines such as "big, large, huge" (docs/objectives.md); "": the English one of the package.',
        effective=_READ_BY_POSITIVE,
        resumable=True,
        local=True,
    )
    mask_model: str = key(
        "",
        'The masked language model that predicts tokens, itself not trained: a folder or Hub name; "": model.name.',
        effective=_READ_BY_POSITIVE,
    )
    mixing: str = key(
        "batch",
        """What a batch of a mixture (data.sources) holds. "batch": examples of one source, so that negatives of a batch
        are of its kind; "example": examples of all sources.""",
        one_of=("batch", "example"),
    )
    mixing_temperature: float = key(
        0.0,
        """The share of a source in a mixture is proportional to weight x rows^(1/T). 1: to the rows; above: more even;
        0: to the weights alone.""",
        at_least=0,
        example=1.0,
    )
    max_length: int = key(32, "Tokens of a text, special tokens included; longer texts are cut.", at_least=3)
    packed: bool = key(
        True, "Let sentences share rows of row_length tokens; False: a row for each sentence.", layout=True
    )
    row_length: int = key(
        0,
        "Tokens of a row; 0: max_length, or twice that and at most 512 where sentences share rows.",
        at_least=0,
        layout=True,
    )
    cache_dir: str = key(
        "", 'Where tokenised data is kept; "": $SIMCSE_CACHE or ~/.cache/simcse_jax.', layout=True, local=True
    )

    @property
    def limits(self) -> tuple[float, float]:
        """Return the lowest and highest score that are allowed; ValueError where score_range is wrong."""
        if not self.score_range:
            return -math.inf, math.inf
        lowest, highest = map(float, self.score_range.split(","))
        if not lowest < highest:
            raise ValueError(self.score_range)
        return lowest, highest


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Keys of the run. Exactly one of steps, epochs and examples is above 0."""

    batch_size: int = key(64, "Examples of a step, over all devices.", at_least=2)
    steps: int = key(
        0,
        """Length of the run in steps. Exactly one of train.steps, train.epochs and train.examples is above 0; one given
        on the command line replaces the recipe's.""",
        at_least=0,
        example=1,
    )
    epochs: float = key(1.0, "Length of the run in passes over the data.", at_least=0)
    examples: int = key(0, "Length of the run in examples.", at_least=0, example=1)
    seed: int = key(0, "Seed of everything random.", at_least=0)
    groups_at_once: int = key(
        0,
        "Groups that a device encodes at a time, activations recomputed (GradCache); 0: all at once.",
        at_least=0,
        layout=True,
    )
    log_every_steps: int = key(10, "Steps between two lines of the log.", at_least=1, layout=True)
    trackers: str = key(
        "",
        """Comma-separated trackers that get recipe, metrics, dev scores and report too: "wandb", "mlflow", "trackio".
        Each is a package of its own, and finds its server by its own variables (docs/scale.md).""",
        layout=True,
        example="wandb",
    )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the steps of the whole run: whole batches only, at least one."""
        if self.steps:
            return self.steps
        steps = self.examples / self.batch_size if self.examples else self.epochs * steps_per_epoch
        return max(int(steps + 1e-6), 1)  # 0.29 x 100 is 28.999...


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
        effective=(When("objective.false_negatives"), _TEACHER),
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


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Keys of distillation: whose vectors the encoder learns, and by which losses."""

    name: str = key(
        "",
        """Where the vectors that the encoder learns come from: a model (run folder, model folder or Hub name), which
        encodes each text of the data once, into the cache; or .parquet files that `embed` wrote from these texts,
        comma-separated. "": no teacher. Where a run resumes, the vectors must be of the same model or file.""",
        resumable=True,
        local=True,
        example="sentence-transformers/all-MiniLM-L6-v2",
    )
    width: int = key(
        0,
        """Reduce the teacher's vectors to so many features, their first axes of a singular value decomposition: to the
        encoder's width, so that mse needs no projection. 0: all.""",
        at_least=0,
        effective=_TEACHER,
        example=256,
    )
    mse: float = key(
        0.0,
        """Weight of the squared distance between an embedding and its teacher's vector, both of length 1; where widths
        differ, a learned projection comes between, which is not exported. 0: none.""",
        at_least=0,
        effective=_TEACHER,
        example=1.0,
    )
    kl: float = key(
        0.0,
        """Weight of the divergence between the teacher's softmax of a text's similarities with the other texts of the
        batch, and the encoder's. 0: none.""",
        at_least=0,
        effective=_TEACHER,
        example=1.0,
    )
    temperature: float = key(
        0.05, "The teacher's similarities are divided by it.", above=0, effective=When("teacher.kl")
    )
    student_temperature: float = key(
        0.0,
        "The encoder's similarities are divided by it; 0: as the teacher's.",
        at_least=0,
        effective=When("teacher.kl"),
        example=0.05,
    )
    products: str = key(
        "float32",
        """Factors of the teacher's matrix products, as model.products says of the encoder's.""",
        one_of=PRODUCTS,
        effective=_TEACHER,
    )
    margin_mse: float = key(
        0.0,
        """Weight of the squared difference between the encoder's margin, cosine of the positive less cosine of a
        negative, and the teacher's; hard negatives where the data has them, else those of the batch. 0: none.""",
        at_least=0,
        effective=_TEACHER,
        example=1.0,
    )

    @property
    def weights(self) -> dict[str, float]:
        """Return the weight of each loss that is used, by its name."""
        return {name: getattr(self, name) for name in DISTILLATIONS if getattr(self, name)}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Keys of the optimizer and its schedule."""

    name: str = key(
        "adamw",
        """The rule of updates. "adamw": the paper's; "lion": the sign of a mean of gradients, half of AdamW's state
        (its paper: a third to a tenth of AdamW's learning rate, b2 0.99); "adafactor": second moments as means of rows
        and columns, hardly any state; "muon": orthogonal updates of the layers' matrices, scaled to AdamW's size so
        that its learning rates serve, and AdamW for the rest.""",
        one_of=OPTIMIZERS,
        example="lion",
    )
    learning_rate: float = key(3e-5, "Learning rate after the warm-up.", above=0)
    schedule: str = key(
        "linear",
        """The learning rate after the warm-up. "linear" or "cosine": down to 0 at the end of the run; "constant";
        "warmup_stable_decay": constant, and linear to 0 over the last decay_steps.""",
        one_of=SCHEDULES,
        example="cosine",
    )
    warmup_steps: int = key(0, "Steps in which the learning rate rises from 0.", at_least=0)
    decay_steps: int = key(
        0,
        "The last steps of the run, in which the learning rate falls to 0; 0: a tenth of those after the warm-up.",
        at_least=0,
        effective=When("optimizer.schedule", ("warmup_stable_decay",)),
    )
    layer_decay: float = key(
        0.0,
        """Learning rates by layer: that of layer l of L is multiplied by layer_decay^(L - l), of the embeddings by
        layer_decay^L; heads have the whole one. 0: all have.""",
        at_least=0,
        below=1,
        example=0.9,
    )
    weight_decay: float = key(0.0, "Decoupled weight decay, times the learning rate.", at_least=0, example=0.01)
    decayed: str = key(
        "matrices",
        """What weight decay acts on. "matrices": kernels and embedding tables; "kernels": without the tables; "all":
        also biases and norms.""",
        one_of=DECAYED,
        effective=When("optimizer.weight_decay"),
        example="kernels",
    )
    b1: float = key(0.9, "Decay of the mean of gradients.", at_least=0, below=1, effective=_ADAM_OR_LION)
    b2: float = key(
        0.999,
        "Decay of the mean of squared gradients; of Lion, of the mean that it keeps.",
        at_least=0,
        below=1,
        effective=_ADAM_OR_LION,
    )
    eps: float = key(
        1e-8,
        "Added to the root of the mean of squared gradients.",
        above=0,
        effective=When("optimizer.name", ("adamw", "muon")),
    )
    momentum: float = key(
        0.95,
        "Decay of the mean of gradients of Muon's matrices.",
        at_least=0,
        below=1,
        effective=When("optimizer.name", ("muon",)),
    )
    clip_norm: float = key(1.0, "Largest global norm of the gradient; 0: no clipping.", at_least=0)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Keys of the evaluation while training."""

    data: str = key(
        "hf://datasets/princeton-nlp/datasets-for-simcse/senteval.tar",
        """Graded pairs: a .tsv or .csv of score, sentence, sentence; SentEval's sts-dev.csv or its folder; or the
        senteval archive of the Hub. Or KIND:SOURCE, a task that evaluate takes as --KIND=SOURCE: retrieval:DIR. Or
        function:MODULE:NAME, a function of your own. Or heldout:500: that many documents (rows, where there are none)
        of data.files, which are then not trained on. "": no evaluation, and the last checkpoint is the best.""",
        resumable=True,
        local=True,
    )
    measure: str = key(
        "",
        """The value of eval.data's task that chooses the best checkpoint and counts for patience: spearman or pearson
        of pairs; ndcg@10, mrr@10, recall@10, ... of retrieval. "": the first of its kind.""",
        effective=When("eval.data"),
        example="ndcg@10",
    )
    every_steps: int = key(125, "Steps between two evaluations.", at_least=1, resumable=True)
    patience: int = key(
        0, "Stop after this many evaluations without a better score; 0: never.", at_least=0, resumable=True
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Keys of checkpoints."""

    every_steps: int = key(500, "Steps between two checkpoints.", at_least=1, layout=True)
    keep: int = key(
        2,
        "The newest states that checkpoints/last keeps; a damaged one has another before it.",
        at_least=2,
        layout=True,
    )
    keep_every_steps: int = key(
        0,
        """Also save the state every so many steps, and keep it for good, to go on from it in another folder
        (--resume_from). 0: none.""",
        at_least=0,
        layout=True,
        example=1000,
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Keys of the device mesh, data x fsdp devices. Both axes split parameters and optimizer state."""

    data: int = key(
        -1,
        "Devices along the axis data; -1: all visible devices, divided by mesh.fsdp.",
        at_least=1,
        also=(-1,),
        layout=True,
    )
    fsdp: int = key(
        1,
        "Devices along the axis fsdp. Above 1, parameters are whole on no device: a layer is gathered when it runs.",
        at_least=1,
        layout=True,
    )

    @property
    def devices(self) -> int:
        """Return the number of devices."""
        return self.data * self.fsdp


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Hold one source of a mixture, data.sources.NAME."""

    name: str
    weight: float
    data: DataConfig  # the section, with the source's own keys in place of the section's
    loss: str
    dev: str = ""

    def flat(self, config: Config) -> dict[str, Any]:
        """Return its keys by their full names: the weight, dev data if any, and what differs from the whole run's."""
        own = {"weight": self.weight} | ({"dev": self.dev} if self.dev else {})
        if self.loss != config.objective.loss:
            own["loss"] = self.loss
        for field in SOURCE_DATA:
            if (value := getattr(self.data, field)) != getattr(config.data, field):
                own[field] = value
        return {f"{SOURCES}{self.name}.{field}": value for field, value in own.items()}


@dataclasses.dataclass(frozen=True)
class Config:
    """Hold a whole recipe, checked. `group_size` is no key: `resolve` computes it."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    objective: ObjectiveConfig
    mlm: MlmConfig
    teacher: TeacherConfig
    optimizer: OptimizerConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    mesh: MeshConfig
    sources: tuple[SourceConfig, ...] = ()  # of a mixture, by name
    group_size: int = 0

    def flat(self) -> dict[str, Any]:
        """Return every key by its full name, "train.seed" for example."""
        values = {name: getattr(getattr(self, section), field) for name, (section, field) in _PLACES.items()}
        return functools.reduce(operator.or_, [source.flat(self) for source in self.sources], values)

    @property
    def by_source(self) -> dict[str, Config]:
        """Return the config that each source with a weight is read by, by its name; {"": self} without sources."""
        if not self.sources:
            return {"": self}
        return {
            source.name: dataclasses.replace(
                self, data=source.data, objective=dataclasses.replace(self.objective, loss=source.loss), sources=()
            )
            for source in self.sources
            if source.weight
        }

    @property
    def by_loss(self) -> dict[str, Config]:
        """Return a config for each loss, objective.loss first; those of sources have what a batch of theirs has."""
        return {self.objective.loss: self} | {part.objective.loss: part for part in self.by_source.values()}


SECTIONS: dict[str, Any] = {
    name: kind for name, kind in get_type_hints(Config).items() if name not in ("sources", "group_size")
}
KEYS: dict[str, Key] = {made.name: made for name, kind in SECTIONS.items() for made in section_keys(name, kind)}
_PLACES = {name: name.split(".") for name in KEYS}
# The keys of a source of a mixture, data.sources.NAME.KEY, by KEY.
SOURCES = "data.sources."
SOURCE_DATA = ("files", "columns", "positive", "prompts", "scores")  # as in the section data, where they are left out
SOURCE_KEYS: dict[str, Key] = {
    "weight": Key(
        default=1.0,
        meaning="The source's share in training is proportional to it (data.mixing_temperature); 0 leaves it out.",
        at_least=0,
        example=2.0,
        name="weight",
        type=float,
    ),
    "dev": Key(
        default="",
        meaning="Dev data of the source, as eval.data takes it, scored with the source's prompts as dev/NAME/MEASURE. "
        'With any, dev/mean chooses the best checkpoint: the mean over them and eval.data; "": none.',
        example="pairs.tsv",
        resumable=True,
        local=True,
        name="dev",
    ),
    "loss": KEYS["objective.loss"],
    **{field: KEYS[f"data.{field}"] for field in SOURCE_DATA},
}
LAYOUT_KEYS = frozenset(made.name for made in KEYS.values() if made.layout)
RESUMABLE_KEYS = frozenset(made.name for made in KEYS.values() if made.layout or made.resumable)
LOCAL_KEYS = frozenset(made.name for made in KEYS.values() if made.local)


def find_key(name: str) -> Key | None:
    """Return the key of this full name, that of a source included; None where there is none."""
    if name.startswith(SOURCES):
        source, _, field = name.removeprefix(SOURCES).partition(".")
        return dataclasses.replace(SOURCE_KEYS[field], name=name) if source and field in SOURCE_KEYS else None
    return KEYS.get(name)


def resumable(names: Iterable[str]) -> set[str]:
    """Return those of the keys that a run may resume with another value of."""
    return {name for name in names if (made := find_key(name)) and (made.layout or made.resumable)}


def is_local(name: str) -> bool:
    """Return whether the hosts of one run may each have another value of this key."""
    made = find_key(name)
    return made is not None and made.local


def defaults() -> dict[str, Any]:
    """Return every key at its default, which is also what a key means in a recipe written before the key existed."""
    return {name: made.default for name, made in KEYS.items()}


def nested(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the values of full names by section and field."""
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in values.items():
        section, _, field = name.partition(".")
        sections[section][field] = value
    return sections
