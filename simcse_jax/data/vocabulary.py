"""Describe a tokenizer's vocabulary, for masking and for changes of text."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_jax.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Marks of a word's beginning: byte-level BPE (RoBERTa), SentencePiece (XLM-R).
BEGINS = ("\u0120", "\u2581")
ROLES = ("cls", "sep", "pad", "mask", "bos", "eos")  # of tokens that are no text


@dataclass(frozen=True)
class Vocabulary:
    """Describe the V tokens of a tokenizer."""

    special: np.ndarray  # bool[V]: [CLS], [PAD] and the like, which are no text, and ids that no token has
    continues: np.ndarray  # bool[V]: continues the word of the token before it
    mask_id: int | None  # None where the tokenizer has no mask token
    # bool[V]: punctuation, always a word of its own; None = no such token
    marks: np.ndarray | None = None
    unknown: int | None = None  # for words that the vocabulary lacks; counts as a word, and is never predicted

    @functools.cached_property
    def predictable(self) -> np.ndarray:
        """bool[V]: tokens that may be predicted, or replace others."""
        return ~self.special & (np.arange(len(self.special)) != (-1 if self.unknown is None else self.unknown))

    @functools.cached_property
    def regular(self) -> np.ndarray:
        """int64: the ids of the predictable tokens."""
        return np.flatnonzero(self.predictable)

    def word_starts(self, ids: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """Return bool[n]: where words begin in sentences int[n] laid end to end.

        begins bool[n]: the first token of each sentence. A special token is no word; what follows one, or a mark,
        begins a word.
        """
        ends_word = self.special if self.marks is None else self.special | self.marks
        after = np.r_[True, ends_word[ids[:-1]]] | begins
        is_mark = np.zeros(len(ids), bool) if self.marks is None else self.marks[ids]
        return ~self.special[ids] & (after | is_mark | ~self.continues[ids])


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Return the vocabulary of a Hugging Face fast tokenizer."""
    tokens = tokenizer.get_vocab()
    size = id_count(tokenizer)
    special, continues = np.ones(size, bool), np.zeros(size, bool)
    special[[*tokens.values()]] = False
    special[[*tokenizer.all_special_ids]] = True
    unknown = unknown_id(tokenizer)
    if unknown is not None:
        special[unknown] = False
    backend: Any = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    prefix = model.get("continuing_subword_prefix")
    marks = np.zeros(size, bool)
    for token, number in tokens.items():
        if prefix:  # its tokenizers have split punctuation off already
            continues[number] = token.startswith(prefix)
        elif model["type"] in ("BPE", "Unigram"):
            continues[number] = not token.startswith(BEGINS)
            marks[number] = _is_mark(tokenizer.convert_tokens_to_string([token]))
    mask_id = tokenizer.mask_token_id
    return Vocabulary(
        special,
        continues,
        mask_id if isinstance(mask_id, int) else None,
        None if prefix else marks,
        unknown,
    )


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the token for what the vocabulary lacks; None without one, or if it has another role too."""
    unknown = tokenizer.unk_token_id
    roles = [getattr(tokenizer, f"{role}_token_id", None) for role in ROLES]
    return unknown if isinstance(unknown, int) and unknown not in roles else None


def _is_mark(text: str) -> bool:
    """Return whether a token's text is punctuation; bytes that are part of a character are not."""
    text = text.strip()
    return bool(text) and "\ufffd" not in text and not any(character.isalnum() for character in text)


def id_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the rows that a table of embeddings needs: one more than the largest id, even if ids are missing."""
    return max(tokenizer.get_vocab().values()) + 1


def require_mask_token(vocabulary: Vocabulary, key: str, instead: str) -> int:
    """Return the id of the mask token; UserError, with the key that needs it and a way out, where there is none."""
    if vocabulary.mask_id is None:
        raise UserError(
            f"{key} needs a tokenizer with a mask token, and this one has none.\n"
            "Use the tokenizer of a BERT or RoBERTa model, or --config.model.tokenizer=train with random weights; "
            f"without masking: {instead}."
        )
    return vocabulary.mask_id
