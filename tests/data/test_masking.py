"""Masked copies: how much is hidden and by what, where words begin, and that layouts hide the same."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy import stats

from simcse_jax.data.batches import Batches, EncoderInputs, Layout
from simcse_jax.data.examples import ColumnExamples
from simcse_jax.data.masking import Masking, prediction_slots
from simcse_jax.data.vocabulary import Vocabulary
from simcse_jax.group import Group, MaskedGroup

VOCAB, SPECIAL, MASK = 300, 5, 4
CONTINUES = np.arange(VOCAB) >= 200  # a third of the words' tokens go on with the word before
VOCABULARY = Vocabulary(np.arange(VOCAB) < SPECIAL, CONTINUES, MASK)


class Sentences:
    """Hold E sentences of random tokens between [CLS] = 2 and [SEP] = 3."""

    def __init__(self, examples: int, longest: int = 40):
        rng = np.random.default_rng(0)
        self.lengths = rng.integers(3, longest + 1, (examples, 1)).astype(np.int32)
        self.hashes = np.arange(examples, dtype=np.uint64)[:, None]
        self.tokens = rng.integers(SPECIAL, VOCAB, (examples, longest)).astype(np.int32)

    def token_ids(self, rows: np.ndarray) -> list[list[np.ndarray]]:
        return [[np.r_[2, self.tokens[r, : self.lengths[r, 0] - 2], 3].astype(np.int32)] for r in rows]


def masking(rate: float = 0.15, whole_word: bool = False, seed: int = 0) -> Masking:
    return Masking(VOCABULARY, rate, whole_word, seed)


def made(
    examples: int, how: Masking | None, group: int = 64, row_length: int = 64, step: int = 0, **rest: Any
) -> EncoderInputs:
    layout = Layout(examples, group, row_length, **rest)
    return Batches(ColumnExamples(Sentences(examples)), layout, 0, how)(step).inputs


@pytest.mark.parametrize("whole_word", [False, True])
def test_a_word_that_the_vocabulary_lacks_is_neither_predicted_nor_written(whole_word: bool) -> None:
    unknown = 7  # a token of the sentences
    how = Masking(dataclasses.replace(VOCABULARY, unknown=unknown), 0.4, whole_word, seed=0)
    batch = made(1024, how)
    assert batch.masked
    there = batch.groups.ids == unknown
    assert there.sum() > 50
    np.testing.assert_array_equal(batch.masked.ids == unknown, there)
    assert not (batch.masked.labels == unknown).any()


def test_pieces_after_an_unknown_token_are_a_word_of_their_own() -> None:
    """Whatever stands before them: the last word of another sentence, in some layouts."""
    sentences = Sentences(128)
    sentences.tokens[:, 0], sentences.tokens[:, 1:3] = 7, 250
    how = Masking(dataclasses.replace(VOCABULARY, unknown=7), 0.3, whole_word=True, seed=0)
    found = []
    for group in (1, 8, 128):
        batch = Batches(ColumnExamples(sentences), Layout(128, group, 64), 0, how)(0).inputs
        assert batch.masked
        found.append(by_token(batch.groups, batch.masked))
    assert found[0] == found[1] == found[2]
    both = [((s, 2) in found[0]) + ((s, 3) in found[0]) for s, _ in found[0]]
    assert both.count(2) > 10


def by_token(groups: Group, masked: MaskedGroup) -> dict[tuple[int, int], tuple[int, int]]:
    """(sentence, position) -> (id in the masked copy, label), of every token to predict."""
    found = {}
    for g in range(len(groups.ids)):
        used = masked.labels[g] >= 0
        flat = [field[g].ravel()[masked.places[g][used]] for field in (groups.sentences, groups.positions, masked.ids)]
        for sentence, position, new, label in zip(*flat, masked.labels[g][used], strict=True):
            found[int(sentence), int(position)] = int(new), int(label)
    return found


def hidden_of(groups: Group, masked: MaskedGroup) -> np.ndarray:
    """Return bool[G, R * T]: the tokens to predict."""
    hidden = np.zeros((len(groups.ids), groups.ids[0].size), bool)
    for g, places in enumerate(masked.places):
        hidden[g, places[masked.labels[g] >= 0]] = True
    return hidden


@pytest.mark.parametrize("rate", [0.15, 0.4])
@pytest.mark.parametrize("whole_word", [False, True])
def test_so_many_are_hidden_four_fifths_of_them_by_the_mask(rate: float, whole_word: bool) -> None:
    batch = made(4096, masking(rate, whole_word))
    assert batch.masked
    used = batch.masked.labels >= 0
    new = np.take_along_axis(batch.masked.ids.reshape(len(used), -1), batch.masked.places, 1)[used]
    old = np.take_along_axis(batch.groups.ids.reshape(len(used), -1), batch.masked.places, 1)[used]
    np.testing.assert_array_equal(old, batch.masked.labels[used])
    assert old.min() >= SPECIAL
    text = int((batch.groups.ids >= SPECIAL).sum())
    share = used.sum() / text
    spread = 0.5 * np.sqrt(4096) if not whole_word else np.sqrt(4 * rate * text)  # words are of a few tokens
    assert abs(share - rate) < 4 * spread / text + 1e-9  # each sentence is rounded by chance
    kinds = [(new == MASK).sum(), ((new != MASK) & (new != old)).sum(), (new == old).sum()]
    at_random = 0.1 * (1 - 1 / (VOCAB - SPECIAL))  # a random token may be the old one
    expected = np.array([0.8, at_random, 0.2 - at_random]) * used.sum()
    assert stats.chisquare(kinds, expected).pvalue > 1e-3
    replaced = new[(new != MASK) & (new != old)]
    assert stats.chisquare(np.bincount(replaced, minlength=VOCAB)[SPECIAL:]).pvalue > 1e-3


def test_every_place_of_a_sentence_is_chosen_alike() -> None:
    counts = np.zeros(40)
    sentences = Sentences(512, 40)
    sentences.lengths[:] = 40
    batches = Batches(ColumnExamples(sentences), Layout(512, 64, 64), 0, masking())
    for step in range(20):
        batch = batches(step).inputs
        assert batch.masked
        for _, position in by_token(batch.groups, batch.masked):
            counts[position] += 1
    assert counts[0] == counts[39] == 0  # [CLS], [SEP]
    assert stats.chisquare(counts[1:39]).pvalue > 1e-3


def test_nothing_else_changes_and_the_contrastive_inputs_hold_no_mask() -> None:
    batch, plain = made(256, masking()), made(256, None)
    assert batch.masked
    assert plain.masked is None
    for ours, theirs in zip(batch.groups, plain.groups, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not (batch.groups.ids == MASK).any()
    assert (batch.masked.ids == MASK).any()
    kept = ~hidden_of(batch.groups, batch.masked).reshape(batch.groups.ids.shape)
    np.testing.assert_array_equal(batch.masked.ids[kept], batch.groups.ids[kept])


@pytest.mark.parametrize("whole_word", [False, True])
def test_layouts_hide_the_same_and_steps_and_seeds_do_not(whole_word: bool) -> None:
    how = masking(whole_word=whole_word)
    first = made(256, how)
    assert first.masked
    expected = by_token(first.groups, first.masked)
    assert len(expected) > 500
    for other in (made(256, how, group=16), made(256, how, 32, 40, one_per_row=True), made(256, how)):
        assert other.masked
        assert by_token(other.groups, other.masked) == expected
    group = Group(*(field[0] for field in first.groups))
    again = how(group, 0)
    assert (
        by_token(Group(*(x[None] for x in group)), MaskedGroup(*(x[None] for x in again))).items() <= expected.items()
    )
    for other in (how(group, 1), dataclasses.replace(how, seed=1)(group, 0)):
        assert not np.array_equal(other.ids, again.ids)


def test_whole_words_are_taken_whole() -> None:
    batch = made(1024, masking(0.3, whole_word=True))
    assert batch.masked
    hidden = by_token(batch.groups, batch.masked)
    tokens = {}
    for g in range(len(batch.groups.ids)):
        at = np.flatnonzero(batch.groups.segments[g].ravel())
        for s, p, i in zip(*(f[g].ravel()[at] for f in (*batch.groups[3:1:-1], batch.groups.ids)), strict=True):
            tokens[int(s), int(p)] = int(i)
    split = 0
    for (sentence, position), token in tokens.items():
        before = [tokens.get((sentence, position - n), 0) >= 200 for n in range(1, 8)]
        if token >= 200 and position > 1 and not all(before):  # goes on with the word of the token before
            assert ((sentence, position) in hidden) == ((sentence, position - 1) in hidden)
            split += (sentence, position) in hidden
    assert split > 500
    pieces = made(1024, masking(0.3)).masked
    assert pieces
    single = by_token(batch.groups, pieces)
    assert any(
        tokens[s, p] >= 200 and p > 1 and (s, p - 1) not in single for s, p in single
    )  # without whole_word, pieces are


def test_a_long_word_is_chosen_as_often_as_a_short_one() -> None:
    sentences = Sentences(2048)
    rng = np.random.default_rng(1)
    for row in sentences.tokens:  # words of one to six tokens, the same number of tokens in each
        sizes = rng.permutation(np.repeat(np.arange(1, 7), [6, 3, 2, 2, 1, 1]))
        ids = rng.integers(200, VOCAB, sizes.sum())
        ids[np.cumsum(sizes) - sizes] = rng.integers(SPECIAL, 200, len(sizes))
        row[: len(ids)] = ids[: len(row)]
    sentences.lengths[:] = 35 + 2
    batches = Batches(ColumnExamples(sentences), Layout(2048, 64, 64), 0, masking(whole_word=True))
    words, chosen = np.zeros(7), np.zeros(7)
    for step in range(3):
        batch = batches(step).inputs
        assert batch.masked
        hidden = hidden_of(batch.groups, batch.masked)
        ids = batch.groups.ids.reshape(hidden.shape)
        text = ids >= SPECIAL
        starts = text & (ids < 200)
        for g in range(len(ids)):
            begins = np.flatnonzero(starts[g])
            word = np.cumsum(starts[g]) - 1
            sizes = np.bincount(word[text[g]], minlength=len(begins))
            words += np.bincount(sizes, minlength=7)
            chosen += np.bincount(sizes[hidden[g, begins]], minlength=7)
    for size in range(1, 7):
        assert stats.binomtest(int(chosen[size]), int(words[size]), 0.15).pvalue > 1e-3, (size, words, chosen)


@pytest.mark.parametrize("group", [1, 2, 64])
def test_text_without_spaces_is_taken_in_parts(group: int) -> None:
    sentences = Sentences(256)
    sentences.tokens[:] = 200 + sentences.tokens % 100  # every token goes on with the word before
    sentences.lengths[:] = 38
    batches = Batches(ColumnExamples(sentences), Layout(256, group, 64), 0, masking(whole_word=True))
    batch = batches(0).inputs
    assert batch.masked
    hidden = [*by_token(batch.groups, batch.masked)]
    share = len(hidden) / int((batch.groups.ids >= SPECIAL).sum())
    assert 0.1 < share < 0.2
    parts = {(sentence, (position - 1) // 8) for sentence, position in hidden}
    assert len(hidden) == sum(8 if part < 4 else 36 - 4 * 8 for _, part in parts)


@pytest.mark.medium
def test_places_suffice_at_the_worst() -> None:
    """Sentences of one word each fill every row, and by chance more of them are rounded up than the rate says."""
    sentences = Sentences(64)
    sentences.lengths[:] = 3
    batches = Batches(ColumnExamples(sentences), Layout(64, 64, 3), 0, masking(0.05))
    most = 0
    for step in range(200):
        masked = batches(step).inputs.masked
        assert masked
        most = max(most, int((masked.labels >= 0).sum()))
    assert most > 0.05 * 64  # more than its share of the tokens of text
    assert most <= prediction_slots(0.05, 64, 3, 64)
    # Were all rounded up, one a sentence, they would fit too, which the rate alone has no room for.
    assert 0.05 * 64 * 3 < 64 <= prediction_slots(0.05, 64, 3, 64)


def test_a_group_without_sentences_hides_nothing() -> None:
    group = made(64, None).groups
    nothing = Group(*(np.zeros_like(field[0]) for field in group))
    assert (masking()(nothing, 0).labels == -1).all()
