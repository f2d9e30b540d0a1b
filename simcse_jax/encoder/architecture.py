"""Describe an encoder as data: the Flax modules, the ONNX graph, weight shapes and FLOPs all follow from it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

# What is zeroed of the input embeddings in training; "" = nothing.
CUTOFFS = ("", "token", "feature", "span")
# How the factors of an encoder's matrix products may be asked for; see `products.resolve_products`.
PRODUCTS = ("float32", "bfloat16", "auto")
# How attention may be asked for; see `attention.choose_attention`.
ATTENTIONS = ("auto", "plain", "fused")


class DenseShape(NamedTuple):
    """Hold the axes of a dense kernel [*inputs, *outputs]; the product contracts all of `inputs`."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, int]:
        """Return the (inputs, outputs) of the flat kernel."""
        return math.prod(self.inputs), math.prod(self.outputs)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Hold everything that encoders differ in; most fields are named as in Hugging Face's config.json."""

    family: str  # a key of families.table.FAMILIES
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"  # a key of activations.ACTIVATIONS
    max_position_embeddings: int = 512
    type_vocab_size: int = 2  # 0: no token types
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    initializer_range: float = 0.02
    dropout: float = 0.1  # at every site: embeddings, attention weights, both residual branches
    cutoff: str = ""  # one of CUTOFFS
    cutoff_rate: float = 0.1
    position_offset: int = 0  # row of the position table for a sentence's first token; follows from the family

    @property
    def max_length(self) -> int:
        """Return the largest number of tokens of a sentence, special tokens included."""
        return self.max_position_embeddings - self.position_offset

    @property
    def head_size(self) -> int:
        """Return the features of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def tables(self) -> dict[str, int]:
        """Return the rows of each embedding table; all are hidden_size wide, and their rows are summed."""
        tables = {"word": self.vocab_size, "position": self.max_position_embeddings, "token_type": self.type_vocab_size}
        return {name: rows for name, rows in tables.items() if rows}

    @property
    def layer_products(self) -> dict[str, DenseShape]:
        """Return the dense products of one layer, by their place in the parameters."""
        width, inner, heads = (self.hidden_size,), (self.intermediate_size,), (self.num_attention_heads, self.head_size)
        return {
            "attention/qkv": DenseShape(width, (3, *heads)),
            "attention/out": DenseShape(heads, width),
            "ffn/up": DenseShape(width, inner),
            "ffn/down": DenseShape(inner, width),
        }

    @property
    def head_product(self) -> DenseShape:
        """Return the dense product of the head: of the one on [CLS], and of the first one for token prediction."""
        return DenseShape((self.hidden_size,), (self.hidden_size,))

    def as_dict(self) -> dict[str, Any]:
        """Return what a run folder stores; `families.table.architecture_from_dict` reads it."""
        fields = dataclasses.asdict(self)
        del fields["position_offset"]  # follows from the family
        return fields
