"""PyTorch's side of the comparisons: small random models of transformers, and their embeddings by each pooler."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

FAMILIES = (
    *("bert", "roberta", "xlm-roberta", "distilbert", "electra"),
    *("albert", "mpnet", "deberta-v2", "modernbert", "nomic_bert", "gte"),
)
# Families whose bare class in transformers has no head on [CLS].
WITHOUT_HEAD = ("distilbert", "electra", "deberta-v2", "modernbert", "nomic_bert", "gte")
_CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "albert": "Albert",
    "mpnet": "MPNet",
    "deberta-v2": "DebertaV2",
    "modernbert": "ModernBert",
    "nomic_bert": "NomicBert",
    "gte": "Gte",
}
_SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
_AFTER_PADDING = {"max_position_embeddings": 42, "layer_norm_eps": 1e-5, "pad_token_id": 1}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
_CHANGES: dict[str, dict[str, Any]] = {
    "roberta": _AFTER_PADDING | {"type_vocab_size": 1},
    "xlm-roberta": _AFTER_PADDING | {"type_vocab_size": 1},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "mpnet": _AFTER_PADDING,
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 12,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
    },
    "modernbert": _TOKENS | {"local_attention": 8},
    "gte": {"pad_token_id": 0},
}

# Other sizes and settings within a family, which its published models have: (family, changes of its config).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "electra without a projection": ("electra", {"embedding_size": 32}),
    "electra, relu": ("electra", {"hidden_act": "relu"}),
    "distilbert, relu": ("distilbert", {"activation": "relu"}),
    "mpnet, relu": ("mpnet", {"hidden_act": "relu"}),
    "modernbert, heads of relu": ("modernbert", {"classifier_activation": "relu", "classifier_bias": True}),
    "gte, linear scaling": (
        "gte",
        {
            "type_vocab_size": 2,
            "hidden_act": "relu",
            "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
        },
    ),
}


def random_model(family: str, kind: str = "Model", **changes: Any) -> Any:
    """Return a model in evaluation mode with random weights, also in norms and biases, so that a mix-up shows.

    kind: the class's suffix, "Model" or "ForMaskedLM"; changes: keys of its config.
    """
    name = _CLASSES[family]
    config = getattr(transformers, f"{name}Config")(**_SIZES | _CHANGES.get(family, {}) | changes)
    model = getattr(transformers, name + kind)(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            centre = 1.0 if "norm.weight" in parameter_name.lower() else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def pad(tokens: list[np.ndarray], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, attention mask), both int64[N, longest]."""
    longest = max(len(ids) for ids in tokens)
    ids = np.stack([np.pad(np.asarray(t, np.int64), (0, longest - len(t)), constant_values=pad_id) for t in tokens])
    mask = np.stack([np.arange(longest) < len(t) for t in tokens]).astype(np.int64)
    return torch.tensor(ids), torch.tensor(mask)


def torch_embeddings(model: Any, ids: torch.Tensor, mask: torch.Tensor, pooler: str) -> torch.Tensor:
    """float32[N, D], from the definition of each pooler."""
    output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    states = output.hidden_states

    def mean(hidden: torch.Tensor) -> torch.Tensor:
        return torch.stack([h[m.bool()].mean(0) for h, m in zip(hidden, mask, strict=True)])

    def of_tokens(pool: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.stack([pool(h[m.bool()]) for h, m in zip(states[-1], mask, strict=True)])

    match pooler:
        case "max":
            return of_tokens(lambda tokens: tokens.amax(0))
        case "mean_sqrt_len":
            return of_tokens(lambda tokens: tokens.sum(0) / len(tokens) ** 0.5)
        case "weighted_mean":
            return of_tokens(lambda tokens: torch.arange(1.0, len(tokens) + 1) @ tokens / sum(range(len(tokens) + 1)))
        case "last_token":
            return of_tokens(lambda tokens: tokens[-1])
        case "cls":
            return output.pooler_output
        case "cls_before_pooler":
            return output.last_hidden_state[:, 0]
        case "avg":
            return mean(output.last_hidden_state)
        case "avg_top2":
            return (mean(states[-1]) + mean(states[-2])) / 2
        case "avg_first_last":
            return (mean(states[1]) + mean(states[-1])) / 2
        case "avg_embedding_last":
            return (mean(states[0]) + mean(states[-1])) / 2
    raise ValueError(pooler)


def relative_error(ours: Any, theirs: Any) -> float:
    """Return the largest difference, relative to the largest entry of `theirs`."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
