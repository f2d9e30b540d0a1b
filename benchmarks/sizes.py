"""Name the sizes of the encoders that are measured, as in Hugging Face's config.json. Light to import."""

from __future__ import annotations

import dataclasses

from simcse_jax.encoder.architecture import Architecture


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


# Encoders whose training is measured: these sizes of BERT, and other families' base sizes.
ENCODERS = {name: Architecture("bert", 30522, **dataclasses.asdict(sizes)) for name, sizes in SIZES.items()} | {
    "tiny": Architecture("bert", 1000, 64, 2, 4, 128),  # to see that a command works
    "distilbert": Architecture("distilbert", 30522, 768, 6, 12, 3072, type_vocab_size=0),
    "mpnet-base": Architecture(
        *("mpnet", 30527, 768, 12, 12, 3072),
        max_position_embeddings=514,
        layer_norm_eps=1e-5,
        type_vocab_size=0,
        pad_token_id=1,
        relative_buckets=32,
    ),
    "modernbert-base": Architecture(
        *("modernbert", 50368, 768, 22, 12, 1152),
        max_position_embeddings=8192,
        layer_norm_eps=1e-5,
        type_vocab_size=0,
        gated=True,
        pre_norm=True,
        without_bias=("attention/qkv", "attention/out", "ffn/up", "ffn/down", "norm", "mlp/dense"),
        rope_theta=160_000.0,
        local_layers=tuple(n + 1 for n in range(22) if n % 3),
        local_window=64,
        local_rope_theta=10_000.0,
    ),
}
