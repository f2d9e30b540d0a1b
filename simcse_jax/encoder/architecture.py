"""The sizes of an encoder."""

import dataclasses

# What is zeroed of the input embeddings in training; "" = nothing.
CUTOFFS = ("", "token", "feature", "span")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The sizes of an encoder, named as in Hugging Face's config.json."""

    family: str  # "bert", "roberta" or "xlm-roberta"
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    initializer_range: float = 0.02
    dropout: float = 0.1  # at every site: embeddings, attention weights, both residual branches
    cutoff: str = ""  # one of CUTOFFS
    cutoff_rate: float = 0.1

    @property
    def position_offset(self) -> int:
        """Row of the position table that a sentence's first token uses: RoBERTa starts after its padding id."""
        return 0 if self.family == "bert" else self.pad_token_id + 1

    @property
    def max_length(self) -> int:
        """The most tokens that a sentence may have, special tokens included."""
        return self.max_position_embeddings - self.position_offset
