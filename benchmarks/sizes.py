"""Name the sizes of the encoders that are measured, as in Hugging Face's config.json. Light to import."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Hold the sizes of an encoder."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int


SIZES = {
    "minilm": Sizes(6, 384, 12, 1536),
    "bert-base": Sizes(12, 768, 12, 3072),
    "bert-large": Sizes(24, 1024, 16, 4096),
}
