"""A Hugging Face folder <-> the encoder's parameters.

Hugging Face stores one [out, in] matrix per projection and layer; we store [in, out] kernels, stacked over layers, with
query, key and value in one.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.hf_config import hugging_face_config, read_config
from simcse_jax.model_folder.weight_files import read_weights
from simcse_jax.system.errors import UserError

__all__ = ["hugging_face_config", "load_mlm_head", "load_params", "read_config", "to_hugging_face"]

Params = dict[str, Any]
_PREFIXES = ("bert.", "roberta.")  # XLM-R and CamemBERT say "roberta." too
# Heads of other tasks. They may be left over; anything else that is left over means that this is another model.
_HEADS = ("cls.", "lm_head.", "classifier.", "qa_outputs.", "pooler.", "mlp.")
# SimCSE's original training code calls the head "mlp", and published folders call it the pooler.
_HEAD_NAMES = ("pooler.dense", "mlp.dense")
# (dense, norm, output bias, decoder) of the masked-language-model head: BERT's names, then RoBERTa's.
_MLM_NAMES = (
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions"),
    ("lm_head.dense", "lm_head.layer_norm", "lm_head"),
)
_WORDS = "embeddings.word_embeddings.weight"
_SHOWN = 8


class _Weights:
    """The weights of a folder under their modern names; notes what was missing, misshapen or never taken."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        stored = read_weights(folder)
        self.left = {_modern(name): array for name, array in stored.items()}
        if len(self.left) != len(stored):
            twice = [name for name, count in Counter(map(_modern, stored)).items() if count > 1]
            raise UserError(f"The weights in {folder} hold {_listed(twice)} twice, with a prefix and without.")
        self.missing: list[str] = []
        self.misshapen: list[str] = []

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """float32 of that shape; zeros if the folder has none such, which `check` then reports."""
        array = self.left.pop(name, None)
        if array is not None and array.shape == shape:
            return array
        if array is None:
            self.missing.append(name)
        else:
            self.misshapen.append(f"{name} is {list(array.shape)}, {list(shape)} expected")
        return np.zeros(shape, np.float32)

    def dense(self, name: str, inputs: int, outputs: int) -> Params:
        kernel = self.take(f"{name}.weight", (outputs, inputs))
        return {"kernel": np.ascontiguousarray(kernel.T), "bias": self.take(f"{name}.bias", (outputs,))}

    def norm(self, name: str, width: int) -> Params:
        return {"scale": self.take(f"{name}.weight", (width,)), "bias": self.take(f"{name}.bias", (width,))}

    def check(self, config: Architecture) -> None:
        """Nothing, or UserError that names every kind of misfit between the weights and config.json."""
        left_over = [name for name in self.left if not name.startswith(_HEADS)]
        problems = {"missing": self.missing, "left over": left_over, "wrong shape": self.misshapen}
        lines = [f"  {what} ({len(names)}): {_listed(names)}" for what, names in problems.items() if names]
        if lines:
            raise UserError(
                f"The weights in {self.folder} do not fit its config.json ({config.family}, "
                f"{config.num_hidden_layers} layers, width {config.hidden_size}, {config.vocab_size} tokens):\n"
                + "\n".join(lines)
                + "\nTake config.json and the weights from the same model, of the BERT or RoBERTa family."
            )


def load_params(
    folder: str | Path, config: Architecture, head: Literal["load", "fresh", "none"], mlm_head: bool = False
) -> Params:
    """The encoder's parameters from a Hugging Face folder: nested dicts of float32 NumPy arrays, layers stacked.

    head: "load" also takes the trained head (pooler.dense.*), and raises UserError if there is none; with "fresh" (the
    caller initialises one) and "none" the result has no head. mlm_head: also take `load_mlm_head`'s, as "mlm". Heads of
    other tasks are passed over; any other weight that is missing, left over or of another shape is a UserError that
    names it.
    """
    weights = _Weights(folder)
    width = config.hidden_size
    embeddings = {
        "word": weights.take(_WORDS, (config.vocab_size, width)),
        "position": weights.take("embeddings.position_embeddings.weight", (config.max_position_embeddings, width)),
        "norm": weights.norm("embeddings.LayerNorm", width),
    }
    types = "embeddings.token_type_embeddings.weight"
    if config.type_vocab_size:
        embeddings["token_type"] = weights.take(types, (config.type_vocab_size, width))
    else:
        weights.left.pop(types, None)  # an empty table
    layers = [_load_layer(weights, f"encoder.layer.{layer}", config) for layer in range(config.num_hidden_layers)]
    params = {"embeddings": embeddings, "layers": jax.tree.map(lambda *arrays: np.stack(arrays), *layers)}
    if head == "load":
        names = [name for name in _HEAD_NAMES if f"{name}.weight" in weights.left]
        if not names:
            raise UserError(
                f"{folder} has no trained head (pooler.dense.weight), which the pooler 'cls' needs.\n"
                "Use another pooler (cls_before_pooler or avg), or a folder with a head: those of SimCSE have one."
            )
        params["head"] = weights.dense(names[0], width, width)
    if mlm_head:
        params["mlm"] = _mlm_head(weights, config, embeddings["word"])
    weights.check(config)
    return params


def _load_layer(weights: _Weights, name: str, config: Architecture) -> Params:
    width, wide, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    size = width // heads
    qkv = [weights.dense(f"{name}.attention.self.{part}", width, width) for part in ("query", "key", "value")]
    out = weights.dense(f"{name}.attention.output.dense", width, width)
    return {
        "attention": {
            "qkv": {
                "kernel": np.stack([part["kernel"].reshape(width, heads, size) for part in qkv], axis=1),
                "bias": np.stack([part["bias"].reshape(heads, size) for part in qkv]),
            },
            "out": {"kernel": out["kernel"].reshape(heads, size, width), "bias": out["bias"]},
            "norm": weights.norm(f"{name}.attention.output.LayerNorm", width),
        },
        "ffn": {
            "up": weights.dense(f"{name}.intermediate.dense", width, wide),
            "down": weights.dense(f"{name}.output.dense", wide, width),
            "norm": weights.norm(f"{name}.output.LayerNorm", width),
        },
    }


def load_mlm_head(folder: str | Path, config: Architecture) -> Params:
    """The masked-language-model head of a folder: dense {kernel, bias}, norm {scale, bias}, bias float32[V].

    Its decoder is the word embedding table; a folder whose decoder differs from it is a UserError, as is one without
    a head.
    """
    weights = _Weights(folder)
    head = _mlm_head(weights, config, weights.left.get(_WORDS))
    weights.left.clear()  # the encoder's weights are not asked for here
    weights.check(config)
    return head


def _mlm_head(weights: _Weights, config: Architecture, words: np.ndarray | None) -> Params:
    """See `load_mlm_head`; words: the word embedding table, None if there is none."""
    found = [names for names in _MLM_NAMES if f"{names[0]}.weight" in weights.left]
    if not found:
        raise UserError(
            f"{weights.folder} has no masked-language-model head ({' or '.join(names[0] for names in _MLM_NAMES)}).\n"
            "Published BERT and RoBERTa models have one (BertForMaskedLM, RobertaForMaskedLM); SimCSE models do not."
        )
    dense, norm, output = found[0]
    decoder = weights.left.get(f"{output}.decoder.weight")
    if decoder is not None and words is not None and not np.array_equal(decoder, words):
        raise UserError(
            f"{weights.folder}: {output}.decoder.weight differs from {_WORDS}; only a decoder tied to the word "
            "embeddings is supported.\nUse a model with tie_word_embeddings = true, as BERT and RoBERTa have it."
        )
    width, bias = config.hidden_size, f"{output}.bias"
    if bias not in weights.left:  # the two are one tensor, and a file may keep either name
        bias = f"{output}.decoder.bias"
    return {
        "dense": weights.dense(dense, width, width),
        "norm": weights.norm(norm, width),
        "bias": weights.take(bias, (config.vocab_size,)),
    }


def to_hugging_face(params: Mapping[str, Any], config: Architecture) -> dict[str, np.ndarray]:
    """The parameters under the names of BertModel's or RobertaModel's state dict, contiguous float32.

    A head becomes pooler.dense.*. With a head of masked language modelling, the names are those of BertForMaskedLM or
    RobertaForMaskedLM, whose encoder's have a prefix. Also maps gradients, being linear.
    """
    tensors: dict[str, np.ndarray] = {}
    width = config.hidden_size

    def put(name: str, array: Any) -> None:
        tensors[name] = np.ascontiguousarray(np.asarray(array), dtype=np.float32)

    def dense(name: str, layer: Mapping[str, Any], inputs: int) -> None:
        put(f"{name}.weight", np.reshape(layer["kernel"], (inputs, -1)).T)
        put(f"{name}.bias", np.reshape(layer["bias"], -1))

    def norm(name: str, layer: Mapping[str, Any]) -> None:
        put(f"{name}.weight", layer["scale"])
        put(f"{name}.bias", layer["bias"])

    embeddings = params["embeddings"]
    put(_WORDS, embeddings["word"])
    put("embeddings.position_embeddings.weight", embeddings["position"])
    no_types = np.zeros((1, width), np.float32)  # see hugging_face_config
    put("embeddings.token_type_embeddings.weight", embeddings["token_type"] if config.type_vocab_size else no_types)
    norm("embeddings.LayerNorm", embeddings["norm"])
    stacked = jax.tree.map(np.asarray, params["layers"])
    for index in range(config.num_hidden_layers):
        name = f"encoder.layer.{index}"
        layer = jax.tree.map(_at(index), stacked)
        attention, ffn = layer["attention"], layer["ffn"]
        for place, part in enumerate(("query", "key", "value")):
            qkv = {"kernel": attention["qkv"]["kernel"][:, place], "bias": attention["qkv"]["bias"][place]}
            dense(f"{name}.attention.self.{part}", qkv, width)
        dense(f"{name}.attention.output.dense", attention["out"], width)
        norm(f"{name}.attention.output.LayerNorm", attention["norm"])
        dense(f"{name}.intermediate.dense", ffn["up"], width)
        dense(f"{name}.output.dense", ffn["down"], config.intermediate_size)
        norm(f"{name}.output.LayerNorm", ffn["norm"])
    if "head" in params:
        dense("pooler.dense", params["head"], width)
    if "mlm" in params:
        prefix, names = (_PREFIXES[0], _MLM_NAMES[0]) if config.family == "bert" else (_PREFIXES[1], _MLM_NAMES[1])
        tensors = {prefix + name: tensor for name, tensor in tensors.items()}
        dense(names[0], params["mlm"]["dense"], width)
        norm(names[1], params["mlm"]["norm"])
        put(f"{names[2]}.bias", params["mlm"]["bias"])
    return tensors


def _at(index: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: array[index]


def _modern(name: str) -> str:
    """The name without its model's prefix, and with LayerNorm's weights as transformers has called them since 2019."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if "LayerNorm." in name:
        name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
    return name


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
