"""The generated world: the same everywhere, English, graded by meaning, and not given away by words."""

import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import pytest
from scipy.stats import spearmanr

from benchmarks.demo_scores import word_overlap
from simcse_jax.data import demo
from simcse_jax.data.demo_grammar import Voice, inflect, realise
from simcse_jax.data.demo_lexicon import lexicon
from simcse_jax.data.demo_scenes import TOPICS, Scene, draw_scene, grade

DIGEST = "2d5196a59e2e49c251f2ce442471048fc68b6c02b769bdf24dc092e5dc29a8bd"
CHASE = Scene("dog", "chase", "boy", agent_trait="brown", place="park", time="rain")


@pytest.fixture(scope="module")
def sentences() -> tuple[str, ...]:
    return demo.sentences()


@pytest.fixture(scope="module")
def triplets() -> tuple[tuple[str, str, str], ...]:
    return demo.triplets(count=3000)


def test_a_seed_always_gives_the_same_text():
    """On every machine, in every version: runs are compared by it."""
    sets = [demo.sentences(1, 300), demo.triplets(1, 200), demo.graded_pairs(1, "test", 50)]
    assert hashlib.sha256(json.dumps(sets).encode()).hexdigest() == DIGEST


def test_sentences_are_many_and_different_and_a_smaller_count_is_their_beginning(sentences):
    assert len(set(sentences)) == len(sentences) == demo.SENTENCES >= 20_000
    assert demo.sentences(count=100) == sentences[:100]
    assert len(set(demo.sentences(seed=1, count=1000)) & set(sentences)) < 100


def test_graded_sentences_are_in_neither_the_other_split_nor_the_training_text(sentences, triplets):
    dev, test = ({text for pair in demo.graded_pairs(split=split) for text in pair[1:]} for split in ("dev", "test"))
    trained = set(sentences) | {text for triplet in triplets for text in triplet}
    assert len(dev) == len(test) == 2 * demo.GRADED
    assert dev.isdisjoint(test)
    assert trained.isdisjoint(dev | test)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_graded_pairs_cover_the_range_and_words_do_not_give_the_score_away(split):
    pairs = demo.graded_pairs(split=split)
    fifths = Counter(min(int(gold), 4) for gold, _, _ in pairs)
    overlaps = [word_overlap(first, second) for _, first, second in pairs]
    assert set(fifths.values()) == {demo.GRADED // 5}
    assert all(0 <= gold <= 5 and gold == round(gold, 1) for gold, _, _ in pairs)
    spearman: Any = spearmanr([gold for gold, _, _ in pairs], overlaps)
    assert 0.35 <= spearman.statistic <= 0.6


def test_grade_is_symmetric_and_in_range():
    rng = random.Random("pairs of scenes")
    for _ in range(500):
        first, second = draw_scene(rng), draw_scene(rng)
        assert grade(first, first) == 5
        assert 0 <= grade(first, second) == grade(second, first) <= 5


def test_grade_falls_as_the_change_grows():
    cat, unsaid, elsewhere = CHASE._replace(agent="cat"), CHASE._replace(place=None), CHASE._replace(place="kitchen")
    swapped = CHASE._replace(agent="boy", agent_trait=None, object="dog", object_trait="brown")
    other = Scene("chef", "bake", "cake", agent_number="two", place="kitchen", time="sun")
    found = [grade(CHASE, scene) for scene in (CHASE, unsaid, elsewhere, cat, swapped, other)]
    assert found == sorted(set(found), reverse=True)
    assert (found[0], grade(CHASE._replace(action="graze", object=None), other)) == (5, 0)
    for scene in (Scene("man", "open", "door"), Scene("man", "sing", "song")):
        opposite = scene._replace(action="close") if scene.action == "open" else scene._replace(negated=True)
        assert grade(scene, opposite) < grade(scene, scene._replace(agent="horse")) < 5


def test_a_scene_has_many_wordings_that_share_few_words():
    rng = random.Random("wordings")
    texts = sorted({realise(CHASE, Voice(rng)) for _ in range(300)})
    overlaps = [word_overlap(first, second) for first, second in pairwise(texts)]
    assert len(texts) > 200
    assert min(word_overlap(texts[0], text) for text in texts) < 0.2 < max(overlaps)


def test_one_voice_says_swapped_roles_in_the_same_words():
    voice = Voice(random.Random("voice"))
    texts = [realise(Scene(agent, "chase", other), voice) for agent, other in (("dog", "boy"), ("boy", "dog"))]
    assert texts[0] != texts[1]
    assert word_overlap(*texts) > 0.8


def test_entailments_share_fewer_words_than_contradictions(triplets):
    overlaps = [(word_overlap(premise, yes), word_overlap(premise, no)) for premise, yes, no in triplets]
    implied, denied = (sum(column) / len(column) for column in zip(*overlaps, strict=True))
    assert implied < 0.35
    assert denied > 0.5
    assert all(len(set(triplet)) == 3 for triplet in triplets)


def test_articles_numbers_and_verbs_agree(sentences):
    for text in sentences:
        words = text.lower()
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", words), text
        assert not re.search(r"\b(two|three|several|many|pair of|couple of) \w+ (is|was)\b", words), text
        assert re.fullmatch(r"[A-Z][a-z' ,-]+[a-z]", text), text
        assert "  " not in text, text
        assert not re.search(r"\b(\w+) \1\b", words), text


@pytest.mark.parametrize(
    ("verb", "form", "expected"),
    [
        ("run after", "participle", "run after"),
        ("chop", "ing", "chopping"),
        ("carry", "s", "carries"),
        ("carry", "participle", "carried"),
        ("flee from", "ing", "fleeing from"),
        ("have", "s", "has"),
        ("make a call", "ing", "making a call"),
    ],
)
def test_verb_forms(verb, form, expected):
    assert inflect(verb, form) == expected


def test_no_form_belongs_to_two_concepts_and_every_name_is_known():
    world = lexicon()
    tables = [
        {name: [form for forms in noun.forms for form in set(forms)] for name, noun in world.nouns.items()},
        {name: [form.lstrip("~") for form in entry.forms + entry.converse] for name, entry in world.actions.items()},
        {name: list(entry.forms) for name, entry in (world.traits | world.manners).items()},
        {name: list(forms) for name, forms in world.places.items()},
    ]
    for table in tables:
        owners = defaultdict(set)
        for name, forms in table.items():
            for form in forms:
                owners[form].add(name)
        assert [form for form, names in owners.items() if len(names) > 1] == []
    kinds = [kind for entry in world.actions.values() for kind in entry.agents + entry.objects]
    kinds += [kind.lstrip("-") for entry in world.traits.values() for kind in entry.fits]
    places = [place for table in (world.topic_places, world.action_places) for line in table.values() for place in line]
    assert set(kinds) <= set(world.nouns)
    assert set(places) <= set(world.places)
    assert set(world.action_places) | set(world.opposites) <= set(world.actions)
    assert set(world.topic_places) == set(TOPICS)
