"""What masking and augmentation need to know of a tokenizer's vocabulary."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# How words are told apart by tokenizers that mark where one begins: byte-level BPE (RoBERTa), SentencePiece (XLM-R).
BEGINS = ("\u0120", "\u2581")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer, V of them."""

    special: np.ndarray  # bool[V]: [CLS], [PAD] and the like, which are no text, and ids that no token has
    continues: np.ndarray  # bool[V]: goes on with the word of the token before it
    mask_id: int | None  # None where the tokenizer has no mask token

    @functools.cached_property
    def regular(self) -> np.ndarray:
        """int64: the ids of text."""
        return np.flatnonzero(~self.special)

    def word_starts(self, ids: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """bool[n]: where words begin in ids int[n] laid end to end; begins bool[n]: the first token of each sentence.

        A special token is none; what follows one begins a word, whatever it looks like.
        """
        after_special = np.r_[True, self.special[ids[:-1]]] | begins
        return ~self.special[ids] & (after_special | ~self.continues[ids])


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The vocabulary of a Hugging Face fast tokenizer."""
    tokens = tokenizer.get_vocab()
    size = id_count(tokenizer)
    special, continues = np.ones(size, bool), np.zeros(size, bool)
    special[[*tokens.values()]] = False
    special[[*tokenizer.all_special_ids]] = True
    backend: Any = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    prefix = model.get("continuing_subword_prefix")
    for token, number in tokens.items():
        if prefix:
            continues[number] = token.startswith(prefix)
        elif model["type"] in ("BPE", "Unigram"):
            continues[number] = not token.startswith(BEGINS)
    mask_id = tokenizer.mask_token_id
    return Vocabulary(special, continues, mask_id if isinstance(mask_id, int) else None)


def id_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """The rows that a table of embeddings needs: one more than the largest id, whatever is missing below it."""
    return max(tokenizer.get_vocab().values()) + 1


def require_mask_token(vocabulary: Vocabulary, key: str) -> int:
    """The id of the mask token; UserError, which names the key that needs it, where there is none."""
    if vocabulary.mask_id is None:
        raise UserError(
            f"{key} needs a tokenizer with a mask token, and this one has none.\n"
            "Use the tokenizer of a BERT or RoBERTa model, or --config.model.tokenizer=train with random weights; "
            "without masking: --config.mlm.weight=0."
        )
    return vocabulary.mask_id
