"""Write scenes as English sentences: the same scene in many wordings, chosen by a `Voice`.

Nothing of a scene is left out or added here, so their scenes alone decide what two sentences share.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from functools import cache
from typing import TypeVar

from simcse_jax.data.demo_lexicon import lexicon
from simcse_jax.data.demo_scenes import Participant, Scene, draw

Choice = TypeVar("Choice")

# Verbs that double their last consonant, and past participles that do not end in -ed.
DOUBLING = "chop sip get hug run swim shop put cut hit drag tug rub shut dig step shed let strip grip"
PARTICIPLES = """
eat/eaten drink/drunk throw/thrown catch/caught hit/hit read/read write/written send/sent sell/sold buy/bought
break/broken build/built feed/fed teach/taught ride/ridden drive/driven put/put take/taken cut/cut run/run hold/held
shut/shut bring/brought sing/sung make/made
"""
NUMBERS = {
    "two": ("two", "a pair of", "a couple of"),
    "three": ("three",),
    "many": ("several", "many", "some", "a number of"),
}


class Voice:
    """Choose wordings as one speaker does: the same question has the same answer again.

    Two scenes worded by one voice share as many words as they can. `unlike` is a voice whose choices are avoided.
    """

    def __init__(self, rng: random.Random, unlike: Voice | None = None):
        self._rng = rng
        self._made: dict[Hashable, object] = {}
        self._avoid = unlike._made if unlike else {}

    def pick(self, question: Hashable, options: Sequence[Choice]) -> Choice:
        """Return one of the options, the same as before if it is among them."""
        made = self._made.get(question)
        if made in options:
            return made  # type: ignore[return-value]
        avoid = self._avoid.get(question)
        others = [option for option in options if option != avoid] or options
        self._made[question] = choice = draw(self._rng, others)
        return choice


def with_article(phrase: str) -> str:
    """Return the phrase after `a` or `an`."""
    vowel = phrase[0] in "aeiou" and not phrase.startswith(("uni", "use", "eu", "one"))
    return f"{'an' if vowel else 'a'} {phrase}"


@cache
def _participles() -> dict[str, str]:
    return {verb: form for verb, _, form in (pair.partition("/") for pair in PARTICIPLES.split())}


@cache
def inflect(phrase: str, form: str) -> str:
    """Return the verb phrase with its first word as `ing` form, past `participle` or third person (`s`)."""
    verb, _, rest = phrase.partition(" ")
    if form == "s":
        if verb == "have":
            word = "has"
        elif verb.endswith("y") and verb[-2] not in "aeiou":
            word = verb[:-1] + "ies"
        else:
            word = verb + ("es" if verb.endswith(("s", "sh", "ch", "x", "z", "go", "do")) else "s")
    elif form == "participle" and verb in _participles():
        word = _participles()[verb]
    else:
        ending = "ing" if form == "ing" else "ed"
        stem = verb + verb[-1] if verb in DOUBLING.split() else verb
        if verb.endswith("e") and not (form == "ing" and verb.endswith("ee")):
            stem = verb[:-1]
        elif ending == "ed" and verb.endswith("y") and verb[-2] not in "aeiou":
            stem = verb[:-1] + "i"
        word = stem + ending
    return f"{word} {rest}".rstrip()


def noun_phrase(entity: Participant, role: str, voice: Voice) -> str:
    """Return the entity with determiner, number and trait, such as `two boys in red shirts`."""
    world = lexicon()
    noun = world.nouns[entity.noun]
    singular, plural = voice.pick(("noun", entity.noun), noun.forms)
    word = singular if noun.mass or entity.number == "one" else plural
    if entity.trait:
        trait = voice.pick(("trait", entity.trait), world.traits[entity.trait].forms)
        if trait.startswith("^"):
            behind, _, behind_many = trait[1:].partition("/")
            word = f"{word} {behind_many if behind_many and entity.number != 'one' else behind}"
        elif role == "agent" and voice.pick("relative", (True, False, False, False, False)):
            who = "who" if world.noun_tree.is_a(entity.noun, ("person",)) else "that"
            word = f"{word} {who} {'is' if entity.number == 'one' else 'are'} {trait}"
        else:
            word = f"{trait} {word}"
    if noun.mass:
        return voice.pick(("mass", role), ("some {}", "the {}", "{}")).format(word)
    if entity.number == "one":
        return f"the {word}" if voice.pick(("article", role), ("a", "a", "the")) == "the" else with_article(word)
    if entity.number == "many" and role == "object" and voice.pick("bare plural", (True, False)):
        return word
    return f"{voice.pick(('number', entity.number), NUMBERS[entity.number])} {word}"


def _frames(scene: Scene, passive: bool, converse: bool) -> list[str]:
    """Return the sentence patterns that suit the scene, the common ones several times."""
    frames = ["progressive"] * 4
    if not scene.negated:
        frames += ["simple", "simple", "existential", "fragment"]
    if passive:
        frames += ["passive", "passive"] if scene.negated else ["passive", "passive", "simple passive"]
    if converse:
        frames += ["converse", "converse"]
    return frames


def _details(scene: Scene, voice: Voice, attach: bool) -> tuple[str, str, str]:
    """Return place and time as what comes in front, after the subject (if `attach`), and at the end."""
    world = lexicon()
    place = voice.pick(("place", scene.place), world.places[scene.place]) if scene.place else ""
    time = voice.pick(("time", scene.time), world.times[scene.time]) if scene.time else ""
    where = voice.pick("where", ("end", "end", "end", "front", "subject") if attach else ("end", "end", "front"))
    when = voice.pick("when", ("end", "end", "front"))
    if where == "front" and when == "front" and place and time:
        when = "end"
    front = place if where == "front" and place else time if when == "front" else ""
    subject = place if where == "subject" else ""
    ends = [place if where == "end" else "", time if when == "end" else ""]
    if "while" not in time and voice.pick("order", ("place", "place", "time")) == "time":
        ends.reverse()
    return (
        (f"{front}, " if front else ""),
        (f" {subject}" if subject else ""),
        "".join(f" {end}" for end in ends if end),
    )


def _is_many(entity: Participant) -> bool:
    return entity.number != "one" and not lexicon().nouns[entity.noun].mass


def _with_object(verb: str, phrase: str) -> str:
    """Return the verb with its object after it, or where `_` is."""
    return verb.replace("_", phrase) if "_" in verb else f"{verb} {phrase}".rstrip()


def realise(scene: Scene, voice: Voice) -> str:
    """Return one English sentence, capitalised and without full stop, that says the scene and nothing else."""
    action = lexicon().actions[scene.action]
    forms = action.forms if scene.object or not action.objects else action.forms[:1]
    active = [form.lstrip("~") for form in forms]
    passive = [form for form in forms if not form.startswith("~")] if scene.object else []
    converse = action.converse if scene.object and not scene.manner else ()
    frame = voice.pick("frame", _frames(scene, bool(passive), bool(converse)))

    subject, target = scene.doer, scene.target
    if frame == "converse" and target is not None:
        subject, target, active = target, subject, list(converse)
    doer = noun_phrase(subject, "agent", voice)
    other = noun_phrase(target, "object", voice) if target else ""
    if "passive" in frame and target is not None:
        subject = target
        verb = inflect(voice.pick(("verb", scene.action), passive), "participle")
        first, verb = other, f"{_with_object(verb, '').replace('  ', ' ')} by {doer}"
    else:
        verb = voice.pick(("verb", scene.action, frame == "converse"), active)
        form = "ing" if frame != "simple" else "" if _is_many(subject) else "s"
        first, verb = doer, _with_object(inflect(verb, form) if form else verb, other)

    manner = voice.pick(("manner", scene.manner), lexicon().manners[scene.manner].forms) if scene.manner else ""
    early = manner.endswith("ly") and ("passive" in frame or voice.pick("early manner", (True, False)))
    front, behind, end = _details(scene, voice, attach=frame in ("progressive", "simple"))
    be = "are" if _is_many(subject) else "is"
    be_not = be + voice.pick("not", (" not", "n't")) if scene.negated else be
    start = {
        "existential": f"{voice.pick('there', ('there', 'there', 'there', 'here'))} {be} {first}",
        "fragment": first,
        "simple": f"{first}{behind}",
        "passive": f"{first} {be_not} being",
        "simple passive": f"{first} {be}",
    }.get(frame, f"{first}{behind} {be_not}")
    words = (start, manner if early else "", verb, "" if early else manner)
    text = front + " ".join(word for word in words if word) + end
    return text[0].upper() + text[1:]
