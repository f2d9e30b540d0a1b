"""State the keys of the encoder."""

from __future__ import annotations

import dataclasses

from simcse_jax.config.keys import When, key, parse_numbers
from simcse_jax.encoder.architecture import ATTENTIONS, CUTOFFS, PRODUCTS
from simcse_jax.encoder.pooling import POOLERS
from simcse_jax.objective.losses import LOSSES

_CONTRASTIVE = When("objective.loss", lambda _: tuple(LOSSES))
_RANDOM = When("model.init", ("random",))


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
    lora: int = key(
        0,
        """The rank of adapters beside the dense products of layers (LoRA): only they and the heads are trained and have
        optimizer state, and all else stays as it is at the start; 0: all parameters are trained. Evaluated and exported
        is the model with the adapters merged.""",
        at_least=0,
        example=8,
    )
    lora_alpha: float = key(
        16.0,
        "What adapters are multiplied by, times model.lora: W + alpha / rank A B.",
        above=0,
        effective=When("model.lora"),
    )
    lora_targets: str = key(
        "all",
        'Which products of layers have adapters: those of attention and of the MLP ("all"), or of "attention" alone.',
        one_of=("all", "attention"),
        effective=When("model.lora"),
        example="attention",
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
