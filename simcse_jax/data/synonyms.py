"""Replace words by synonyms from a file.

The file is UTF-8 text; each line is a set of words and phrases, separated by commas, that may replace each other:

    big, large, huge
    # a comment; blank lines are ignored
    often, frequently, many times

A word may be on several lines. Phrases, and words that the tokenizer splits into several ("well-known"), may
replace words but are never replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_jax.data.changes import Change, Tokens, choose_words, words_of
from simcse_jax.data.lines import text_lines
from simcse_jax.hashing import token_bits
from simcse_jax.system.errors import UserError
from simcse_jax.system.mirror import local_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A few hundred common English words.
SHIPPED = Path(__file__).parent / "synonyms_en.txt"
# A word's token ids to those of all its replacements.
Replacements = dict[tuple[int, ...], list[np.ndarray]]


def synonym(given: Tokens, *, rate: float, synonyms: str) -> Change:
    """Return a change that replaces a share `rate` of the words by synonyms, exactly one for 0.

    Only words that have synonyms are chosen. synonyms: a file; "" = the one in this package.
    """
    return replace_words(given, rate, load_replacements(Path(synonyms or SHIPPED), given.tokenizer))


def replace_words(given: Tokens, rate: float, replacements: Replacements) -> Change:
    """Return a change that replaces a share `rate` of the words, exactly one for 0, of those with replacements."""
    growth = max(0, *(len(new) - len(old) for old, all_new in replacements.items() for new in all_new))  # tokens

    def bound(lengths: np.ndarray) -> np.ndarray:
        most = np.ceil(rate * lengths).astype(lengths.dtype) if rate else 1
        return np.minimum(lengths + growth * most, given.max_length).astype(lengths.dtype)

    def apply(tokens: Sequence[np.ndarray], places: np.ndarray, key: np.ndarray) -> list[np.ndarray]:
        words = words_of(tokens, given.vocabulary)
        starts = np.flatnonzero(np.diff(words.word, prepend=-1) * (words.word >= 0))
        sizes = np.bincount(words.word[words.word >= 0], minlength=len(words.owner))
        ids = words.ids.tolist()
        found = [
            replacements.get(tuple(ids[at : at + size]))
            for at, size in zip(starts.tolist(), sizes.tolist(), strict=True)
        ]
        has_some = np.array([choices is not None for choices in found], bool)
        chosen = choose_words(words, has_some, rate, words.counts, key, places)
        bits = token_bits(key[2], places[words.owner], words.rank)
        begins = np.cumsum([0, *map(len, tokens)])
        changed = list(tokens)
        # From the last to the first, so that places of earlier words stay valid.
        for number in np.flatnonzero(chosen)[::-1].tolist():
            choices = found[number]
            assert choices is not None
            new, owner = choices[int(bits[number]) % len(choices)], int(words.owner[number])
            at, sentence = int(starts[number] - begins[owner]), changed[owner]
            rest = sentence[at + sizes[number] :]
            if at + len(new) + len(rest) <= given.max_length:
                changed[owner] = np.concatenate([sentence[:at], new, rest])
        return changed

    return Change(apply, bound)


def synonyms_fingerprint(synonyms: str) -> str:
    """Return a hex digest of a file of synonyms; "" = the one in this package."""
    return hashlib.blake2b(local_path(synonyms or SHIPPED).read_bytes(), digest_size=16).hexdigest()


def load_replacements(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> Replacements:
    """Return the replacements in a file of synonyms, as token ids: in lower case, and with a capital first letter.

    Raises UserError when it cannot be read, a line holds a single word, or the tokenizer splits every word of it.
    """
    file = local_path(path)
    if not file.is_file():
        raise UserError(
            f"data.synonyms = {str(path)!r} cannot be read: there is no such file.\n"
            "Give a text file of lines like 'big, large, huge', or leave it out for the file that comes along."
        )
    replacements: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for number, line in enumerate(text_lines(file, str(path)), 1):
        words = [word.strip() for word in line.partition("#")[0].split(",") if word.strip()]
        if not words:
            continue
        if len(set(words)) < 2:
            raise UserError(f"{path}, line {number}: {line.strip()!r} names one word.\nWrite: big, large, huge")
        for form in _forms(words, tokenizer):
            for old, ids in form.items():
                if " " not in old:
                    others = [new for word, new in form.items() if word != old and new != ids]
                    replacements.setdefault(ids, {}).update(dict.fromkeys(others))
    if not any(replacements.values()):
        raise UserError(
            f"data.synonyms = {str(path)!r} holds no synonym that the model's tokenizer knows.\n"
            "Each line is a set of words that may replace each other: big, large, huge"
        )
    return {
        old: [np.array(ids, np.int32) for ids in sorted(new)]  # sorted: the order of lines changes nothing
        for old, new in replacements.items()
        if new
    }


def _forms(words: Sequence[str], tokenizer: Any) -> list[dict[str, tuple[int, ...]]]:
    """Return token ids of each word: as written and capitalised, at the start of a text and after a space."""
    forms = []
    for capitalised in (False, True):
        for before in ("", " "):
            form = {}
            for word in words:
                text = before + (word[:1].upper() + word[1:] if capitalised else word)
                ids = tuple(tokenizer(text, add_special_tokens=False).input_ids)
                if ids and tokenizer.unk_token_id not in ids:
                    form[word] = ids
            forms.append(form)
    return forms
