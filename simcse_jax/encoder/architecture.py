"""Describe an encoder as data: the Flax modules, the ONNX graph, weight shapes and FLOPs all follow from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

# What is zeroed of the input embeddings in training; "" = nothing.
CUTOFFS = ("", "token", "feature", "span")
# How the factors of an encoder's matrix products may be asked for; see `products.resolve_products`.
PRODUCTS = ("float32", "bfloat16", "auto")
ENCODING_PRODUCTS = (*PRODUCTS, "int8")  # "int8" has no gradients
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
    # Below: where families differ from BERT. A run folder states these fields only where they differ.
    embedding_size: int = 0  # width of the tables, if a dense layer maps it to hidden_size; 0: they have hidden_size
    shared_layers: bool = False  # all layers have the same parameters
    gated: bool = False  # activation(x a) * (x b) in place of activation(x a) within the FFN (GLU)
    pre_norm: bool = False  # norms before attention and FFN, one after the last layer, none before the first attention
    without_bias: tuple[str, ...] = ()  # of `layer_products`, "norm" (all of them) and "mlm/dense"
    mlm_act: str = ""  # activation of the head for masked language modelling; "" = hidden_act
    relative_buckets: int = 0  # of a bias on attention scores for each head and bucket of distances; 0: no such bias
    rope_theta: float = 0.0  # base of rotary positions; 0: a table of positions
    rope_scale: float = 1.0  # what rotary positions are multiplied by
    local_layers: tuple[int, ...] = ()  # layers, from 1, in which tokens attend to near tokens only
    local_window: int = 0  # distance of the farthest token that is near
    local_rope_theta: float = 0.0  # base of rotary positions in local layers
    # Buckets of distances on either side whose vectors meet queries and keys (disentangled attention); 0: none, and
    # then a table of positions.
    disentangled_buckets: int = 0

    @property
    def table_size(self) -> int:
        """Return the width of the embedding tables."""
        return self.embedding_size or self.hidden_size

    @property
    def stored_layers(self) -> int:
        """Return the number of layers that have parameters of their own."""
        return 1 if self.shared_layers else self.num_hidden_layers

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
        """Return the rows of each embedding table; all are table_size wide, and their rows are summed."""
        positions = 0 if self.rope_theta or self.disentangled_buckets else self.max_position_embeddings
        tables = {"word": self.vocab_size, "position": positions, "token_type": self.type_vocab_size}
        return {name: rows for name, rows in tables.items() if rows}

    @property
    def layer_products(self) -> dict[str, DenseShape]:
        """Return the dense products of one layer, by their place in the parameters."""
        width, inner, heads = (self.hidden_size,), (self.intermediate_size,), (self.num_attention_heads, self.head_size)
        return {
            "attention/qkv": DenseShape(width, (3, *heads)),
            "attention/out": DenseShape(heads, width),
            "ffn/up": DenseShape(width, (2, *inner) if self.gated else inner),
            "ffn/down": DenseShape(inner, width),
        }

    @property
    def projection(self) -> DenseShape | None:
        """Return the dense product from the tables' width to that of the layers, None where they are the same."""
        return DenseShape((self.embedding_size,), (self.hidden_size,)) if self.embedding_size else None

    @property
    def head_product(self) -> DenseShape:
        """Return the dense product of the head on [CLS]."""
        return DenseShape((self.hidden_size,), (self.hidden_size,))

    @property
    def mlm_product(self) -> DenseShape:
        """Return the first dense product of the head for masked language modelling."""
        return DenseShape((self.hidden_size,), (self.table_size,))

    @property
    def needs_plain_attention(self) -> bool:
        """Return whether attention computes more than the kernels of `fused_attention` do."""
        return bool(self.relative_buckets or self.disentangled_buckets or self.local_layers)

    def with_layers(self, kept: Sequence[int]) -> Architecture:
        """Return the architecture of these layers alone, numbered from 0; what they are made of stays."""
        local = tuple(n for n, layer in enumerate(kept, 1) if layer + 1 in self.local_layers)
        return dataclasses.replace(self, num_hidden_layers=len(kept), local_layers=local)

    def has_bias(self, place: str) -> bool:
        """Return whether a product or norm has a bias; place: as in `without_bias`."""
        return place not in self.without_bias

    def as_dict(self) -> dict[str, Any]:
        """Return what a run folder stores; `families.table.architecture_from_dict` reads it."""
        fields = dataclasses.asdict(self)
        del fields["position_offset"]  # follows from the family
        later = [field.name for field in dataclasses.fields(self)]
        later = later[later.index("position_offset") + 1 :]
        return {name: value for name, value in fields.items() if name not in later or value != _DEFAULTS[name]}


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Architecture)}
