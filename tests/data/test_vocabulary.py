"""What is special, and where words begin, for each kind of tokenizer."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from simcse_jax.data.tokenizer import load_tokenizer, train_wordpiece
from simcse_jax.data.vocabulary import id_count, require_mask_token, vocabulary_of
from simcse_jax.system.errors import UserError

TEXTS = ["unbelievable stories", "a story"] * 30 + ["believable able un"] * 10


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("wordpiece")
    train_wordpiece(TEXTS, 60, folder)
    return load_tokenizer(folder)


def starts(tokenizer: Any, text: str) -> list[str]:
    """Return the words of a text, their pieces put together."""
    vocabulary, ids = vocabulary_of(tokenizer), np.array(tokenizer(text)["input_ids"])
    begins = np.arange(len(ids)) == 0
    words: list[str] = []
    for token, first in zip(tokenizer.convert_ids_to_tokens(ids), vocabulary.word_starts(ids, begins), strict=True):
        if token in tokenizer.all_special_tokens:
            continue
        piece = token.removeprefix("##").removeprefix("\u0120")
        if first:
            words.append(piece)
        else:
            words[-1] += piece
    return words


def test_wordpiece(wordpiece: Any) -> None:
    vocabulary = vocabulary_of(wordpiece)
    assert vocabulary.special.sum() == 4
    assert vocabulary.unknown == wordpiece.unk_token_id
    assert vocabulary.mask_id == wordpiece.mask_token_id
    assert len(vocabulary.regular) == len(wordpiece) - 5
    assert len(wordpiece.tokenize("unbelievable stable")) > 2
    assert starts(wordpiece, "unbelievable stable story") == ["unbelievable", "stable", "story"]


def test_a_mark_of_another_kind_in_a_text_changes_nothing(tmp_path: Path) -> None:
    train_wordpiece([*TEXTS, "a \u2581 b \u0120 c"] * 3, 80, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert "\u2581" in tokenizer.get_vocab()
    assert starts(tokenizer, "unbelievable \u2581 story") == ["unbelievable", "\u2581", "story"]


def test_sentencepiece() -> None:
    from transformers import PreTrainedTokenizerFast

    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [*((mark, 0.0) for mark in marks), ("\u2581st", -1.0), ("o", -2.0), ("ry", -2.0), ("\u2581", -3.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    roles = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **dict(zip(roles, marks, strict=True)))
    assert [word.strip("\u2581") for word in starts(tokenizer, "story sto")] == ["story", "sto"]


def test_deberta(tmp_path: Path) -> None:
    """As its published folders have it: [MASK] after all pieces, [UNK] among the special ones."""
    from transformers import DebertaV2Tokenizer

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    pieces = ["\u2581", "\u2581st", "ory", "o", ",", "no", "ries"]
    scores = [0.0] * len(special) + [-float(n) for n in range(1, 1 + len(pieces))]
    DebertaV2Tokenizer(vocab=list(zip(special + pieces, scores, strict=True))).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    vocabulary = vocabulary_of(tokenizer)
    assert (vocabulary.mask_id, vocabulary.unknown, len(vocabulary.special)) == (11, 3, 12)
    np.testing.assert_array_equal(np.flatnonzero(vocabulary.special), [0, 1, 2, 11])
    words = [word.strip("\u2581") for word in starts(tokenizer, "story,no stories")]
    assert words == ["story", ",", "no", "stories"]


def test_ids_that_no_token_has_are_no_text(wordpiece: Any) -> None:
    class Gapped:
        """Token ids 0, 1 and 9 of a tokenizer's."""

        all_special_ids = (0,)
        mask_token_id = 0
        unk_token_id = None
        backend_tokenizer = wordpiece.backend_tokenizer

        def get_vocab(self) -> dict[str, int]:
            return {"[MASK]": 0, "a": 1, "b": 9}

    tokenizer: Any = Gapped()
    assert vocabulary_of(tokenizer).regular.tolist() == [1, 9]
    assert id_count(tokenizer) == 10


def test_byte_level_bpe() -> None:
    from transformers import PreTrainedTokenizerFast

    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = [*"abcdefghijklmnopqrstuvwxyz", "\u0120"]
    words = {token: n for n, token in enumerate([*marks, *letters, "st", "\u0120st"])}
    backend = Tokenizer(models.BPE(words, [("s", "t"), ("\u0120", "st")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    roles = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **dict(zip(roles, marks, strict=True)))
    vocabulary = vocabulary_of(tokenizer)
    assert vocabulary.special[:5].tolist() == [True, True, True, False, True]
    assert vocabulary.unknown == 3
    assert not vocabulary.predictable[:5].any()
    assert not vocabulary.special[5:].any()
    # The first word has no mark of its own, and begins all the same; "o" goes on with " st".
    assert starts(tokenizer, "ab sto")[0] == "ab"
    assert starts(tokenizer, "sto sto") == ["sto", "sto"]


def test_without_a_mask_token(wordpiece: Any) -> None:
    vocabulary = vocabulary_of(wordpiece)
    assert require_mask_token(vocabulary, "mlm.weight = 1", "--config.mlm.weight=0") == wordpiece.mask_token_id
    with pytest.raises(
        UserError, match=r"mlm.weight = 1 needs a tokenizer with a mask token.*\n.*--config.mlm.weight=0"
    ):
        require_mask_token(dataclasses.replace(vocabulary, mask_id=None), "mlm.weight = 1", "--config.mlm.weight=0")
