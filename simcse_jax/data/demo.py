"""Generate captions from a seed alone: text to train on, and graded pairs for evaluation.

A caption describes a scene (`demo_scenes`): who does what to whom, with what traits, how, where and when. The grammar
(`demo_grammar`) words one scene in many ways, so that captions of one scene may share few words; and captions that
share nearly all words may mean different things: roles swapped, an opposite, another place. Grades come from the
scenes, never from the wording. The same seed gives the same text on every machine.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Literal

from simcse_jax.data.demo_grammar import Voice, realise
from simcse_jax.data.demo_scenes import DETAILS, Scene, contradict, draw, draw_scene, generalise, grade
from simcse_jax.system.errors import UserError

SENTENCES = 30_000
TRIPLETS = 20_000
GRADED = 1_000

# What a contradiction changes, the weightier parts more often.
CONTRADICTIONS = ("agent", "action", "object") * 3 + ("swap", "swap", "place", "place", "negated")
CONTRADICTIONS += ("agent_trait", "object_trait", "manner", "time")
CHANGES = ("agent", "action", "object") * 2 + ("place", "agent_trait", "object_trait", "manner", "swap", "negated")
CHANGES += ("time", "unsaid", "unsaid", "broader")


@cache
def sentences(seed: int = 0, count: int = SENTENCES) -> tuple[str, ...]:
    """Return `count` different captions, none of them in the graded pairs; made once a process."""
    rng = random.Random(f"demo sentences {seed}")
    seen = set(_held_out(seed))
    found: list[str] = []
    while len(found) < count:
        text = realise(draw_scene(rng), Voice(rng))
        if text not in seen:
            seen.add(text)
            found.append(text)
    return tuple(found)


@cache
def triplets(seed: int = 0, count: int = TRIPLETS) -> tuple[tuple[str, str, str], ...]:
    """Return `count` different (premise, entailment, contradiction), no sentence of which is in the graded pairs.

    An entailment says the premise's scene, or one that it implies, in words of its own; a contradiction changes one
    thing and mostly keeps the premise's words. Made once a process.
    """
    rng = random.Random(f"demo triplets {seed}")
    graded, seen = _held_out(seed), set()
    found: list[tuple[str, str, str]] = []
    while len(found) < count:
        scene = draw_scene(rng)
        part = draw(rng, CONTRADICTIONS)
        # That one man does not sing says nothing about another man: what is denied is contradicted by affirming it.
        other = contradict(rng, scene, "negated" if scene.negated else part)
        if other is None:
            continue
        voice = Voice(rng)
        premise = realise(scene, voice)
        implied = generalise(rng, scene, share=draw(rng, (0.0, 0.2, 0.4)))
        entailment = realise(implied, Voice(rng, unlike=voice if rng.random() < 0.6 else None))
        contradiction = realise(other, voice if rng.random() < 0.7 else Voice(rng))
        triplet = (premise, entailment, contradiction)
        if premise == entailment or triplet in seen or not graded.isdisjoint(triplet):
            continue
        seen.add(triplet)
        found.append(triplet)
    return tuple(found)


@cache
def graded_pairs(
    seed: int = 0, split: Literal["dev", "test"] = "dev", count: int = GRADED
) -> tuple[tuple[float, str, str], ...]:
    """Return `count` different (gold, sentence, sentence); gold is 0 to 5 in steps of 0.2, by `demo_scenes.grade`.

    Equally many pairs of each fifth of the range. dev and test share no sentence. Made once a process.
    """
    if split not in ("dev", "test"):
        raise UserError(f"demo: no split {split!r} of graded pairs; use 'dev' or 'test'.")
    # The test split keeps clear of a dev split of the same size, or of the default one if that is larger.
    dev = () if split == "dev" else graded_pairs(seed, "dev", max(count, GRADED))
    taken = {text for _, *texts in dev for text in texts}
    rng = random.Random(f"demo graded {split} {seed}")
    found: list[tuple[float, str, str]] = []
    while len(found) < count:
        gold, first, second = _pair(rng, fifth=len(found) % 5)
        if first != second and first not in taken and second not in taken:
            taken.update((first, second))
            found.append((gold, first, second))
    return tuple(found)


@cache
def _held_out(seed: int) -> frozenset[str]:
    """Return every sentence of the default graded pairs and of this seed's."""
    pairs = [pair for world in {0, seed} for pair in graded_pairs(world, "dev") + graded_pairs(world, "test")]
    return frozenset(text for pair in pairs for text in pair[1:])


def _pair(rng: random.Random, fifth: int) -> tuple[float, str, str]:
    """Return a graded pair whose gold lies in that fifth of the range, 0 to 4."""
    while True:
        first = draw_scene(rng)
        second = _changed(rng, first, draw(rng, (0, 1, 1, 2, 2, 3, 4, 5))) if rng.random() < 0.8 else draw_scene(rng)
        gold = grade(first, second)
        if min(int(gold), 4) == fifth:
            break
    voice = Voice(rng)
    text = realise(first, voice)
    # One voice, words of its own, or the other's words avoided: independent of how much meaning is shared.
    other_voice = draw(rng, (voice, Voice(rng), Voice(rng, unlike=voice)))
    return gold, text, realise(second, other_voice)


def _changed(rng: random.Random, scene: Scene, changes: int) -> Scene:
    """Return the scene after so many changes: parts replaced, left out, or generalised."""
    for _ in range(changes):
        change = draw(rng, CHANGES)
        if change == "unsaid":
            scene = scene._replace(**{draw(rng, DETAILS): None})
        elif change == "broader":
            scene = generalise(rng, scene, share=0.3)
        else:
            scene = contradict(rng, scene, change) or scene
    return scene
