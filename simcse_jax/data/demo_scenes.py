"""Draw, change and compare scenes, the meaning of captions.

The grade of a pair is a function of its two scenes, defined in `shared_meaning`. Longer than most files here, as a
scene, what may change in it and what the change costs have to be read together.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

from simcse_jax.data.demo_lexicon import Tree, lexicon

Choice = TypeVar("Choice")

TOPICS = ("animals", "food", "music", "sport", "travel", "office", "home", "shopping", "people")

# The weight of each part of a scene, 0 for a part that neither scene has; the grade is the shared fraction.
WEIGHTS = {"agent": 0.24, "agent_trait": 0.08, "agent_number": 0.04, "action": 0.32, "manner": 0.06}
WEIGHTS |= {"object": 0.22, "object_trait": 0.08, "object_number": 0.03, "place": 0.10, "time": 0.07}
DETAILS = ("agent_trait", "object_trait", "manner", "place", "time")
UNSAID = 0.5  # factor for a detail that only one scene has: leaving it out costs half of what contradicting it does
KIND = 0.7  # a concept and what it is a kind of: dog, animal
SIBLINGS = (1.0, 0.4, 0.2)  # related concepts, by steps up to what they have in common: dog, cat; dog, cow
CROSSED = 0.4  # a participant found in the other role: a dog chases a boy, a boy chases a dog


class Participant(NamedTuple):
    """Describe who acts in a scene, or what is acted on."""

    noun: str
    number: str
    trait: str | None


class Scene(NamedTuple):
    """Describe the meaning of one caption; None is what it does not say. Numbers are one, two, three or many."""

    agent: str
    action: str
    object: str | None = None
    agent_trait: str | None = None
    object_trait: str | None = None
    agent_number: str = "one"
    object_number: str = "one"
    negated: bool = False
    manner: str | None = None
    place: str | None = None
    time: str | None = None

    @property
    def doer(self) -> Participant:
        """Who acts."""
        return Participant(self.agent, self.agent_number, self.agent_trait)

    @property
    def target(self) -> Participant | None:
        """What is acted on, if anything."""
        return Participant(self.object, self.object_number, self.object_trait) if self.object else None


def draw(rng: random.Random, options: Sequence[Choice]) -> Choice:
    """Return one of the options. Only `random()` is used, whose sequence Python promises never to change."""
    return options[int(rng.random() * len(options))]


def topic_of(scene: Scene) -> str:
    """Return what the scene is about, one of TOPICS, from the action, who does it and what it is done to."""
    world = lexicon()
    topic = world.actions[scene.action].topic
    if topic.startswith("!"):
        return topic[1:]
    roots = [world.noun_tree.above(noun)[-1] for noun in (scene.agent, scene.object) if noun]
    if "animal" in roots:
        return "animals"
    return world.topics[roots[-1]] if topic == "-" else topic


@cache
def nouns_below(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Return the most specific nouns of these kinds."""
    world = lexicon()
    return tuple(noun for noun in world.leaves if world.noun_tree.is_a(noun, kinds))


@cache
def _actions_about(topic: str) -> tuple[str, ...]:
    """Return the actions of scenes about this topic."""
    return tuple(
        name
        for name, action in lexicon().actions.items()
        if any(
            topic_of(Scene(agent, name, target)) == topic
            for agent in action.agents
            for target in action.objects or (None,)
        )
    )


@cache
def _traits_of(noun: str) -> tuple[str, ...]:
    """Return the traits that fit a noun."""
    world, traits = lexicon(), lexicon().traits
    kinds = world.noun_tree.above(noun)
    return tuple(
        name
        for name, trait in traits.items()
        if world.noun_tree.is_a(noun, trait.fits) and not any(f"-{kind}" in trait.fits for kind in kinds)
    )


@cache
def _manners_of(action: str) -> tuple[str, ...]:
    """Return the manners that fit an action."""
    codes = lexicon().actions[action].codes
    return tuple(name for name, manner in lexicon().manners.items() if manner.fits[0] in codes)


def places_for(scene: Scene) -> tuple[str, ...]:
    """Return where such a scene may happen."""
    world = lexicon()
    return world.action_places.get(scene.action) or world.topic_places[topic_of(scene)]


def _draw_participant(rng: random.Random, role: str, kinds: tuple[str, ...], single: bool) -> dict[str, Any]:
    """Return noun, number and trait of one participant, as fields of a scene."""
    noun = draw(rng, nouns_below(kinds))
    number = "one" if single else draw(rng, ("one",) * 6 + ("two", "many", "many", "three"))
    traits = _traits_of(noun)
    trait = draw(rng, traits) if traits and rng.random() < 0.35 else None
    return {role: noun, f"{role}_number": "one" if lexicon().nouns[noun].mass else number, f"{role}_trait": trait}


def draw_scene(rng: random.Random) -> Scene:
    """Return a scene about any topic."""
    world, topic = lexicon(), draw(rng, TOPICS)
    while True:
        name = draw(rng, _actions_about(topic))
        action = world.actions[name]
        drawn = _draw_participant(rng, "agent", action.agents, "1" in action.codes)
        if action.objects:
            drawn |= _draw_participant(rng, "object", action.objects, "1" in action.codes)
        scene = Scene(action=name, negated=rng.random() < 0.04, **drawn)
        if scene.object != scene.agent and topic_of(scene) == topic:
            break
    manners = _manners_of(name)
    return scene._replace(
        manner=draw(rng, manners) if manners and rng.random() < 0.25 else None,
        place=draw(rng, places_for(scene)) if rng.random() < 0.6 else None,
        time=draw(rng, tuple(world.times)) if rng.random() < 0.2 else None,
    )


@cache
def _actions_with(agent: str, target: str | None) -> frozenset[str]:
    """Return the actions that these nouns can take part in."""
    tree, found = lexicon().noun_tree, set()
    for name, action in lexicon().actions.items():
        taken = tree.is_a(target, action.objects) and target != agent if target else not action.objects
        if taken and tree.is_a(agent, action.agents):
            found.add(name)
    return frozenset(found)


def fits(scene: Scene) -> bool:
    """Return whether these participants can take part in this action, in these numbers and this manner."""
    if scene.action not in _actions_with(scene.agent, scene.object):
        return False
    if "1" in lexicon().actions[scene.action].codes and (scene.agent_number, scene.object_number) != ("one", "one"):
        return False
    return scene.manner is None or scene.manner in _manners_of(scene.action)


def _nearest(rng: random.Random, tree: Tree, name: str, options: Sequence[str]) -> str | None:
    """Return another of the options: half the time a relative of `name`, if there is one."""
    others = [option for option in options if name not in tree.above(option) and option not in tree.above(name)]
    close = [option for option in others if tree.distance(name, option) is not None]
    if close and rng.random() < 0.5:
        return draw(rng, close)
    return draw(rng, others) if others else None


def _with_noun(scene: Scene, role: str, noun: str) -> Scene:
    """Return the scene with another noun in a role; number and trait stay where they fit it."""
    trait, number = getattr(scene, f"{role}_trait"), getattr(scene, f"{role}_number")
    changed = {
        role: noun,
        f"{role}_trait": trait if trait in _traits_of(noun) else None,
        f"{role}_number": "one" if lexicon().nouns[noun].mass else number,
    }
    return scene._replace(**changed)


def _another_action(rng: random.Random, scene: Scene) -> str | None:
    world = lexicon()
    opposites = [other for other in world.opposites.get(scene.action, ()) if fits(scene._replace(action=other))]
    if opposites and rng.random() < 0.6:
        return draw(rng, opposites)
    possible = [name for name in sorted(_actions_with(scene.agent, scene.object)) if fits(scene._replace(action=name))]
    return _nearest(rng, world.action_tree, scene.action, possible)


def contradict(rng: random.Random, scene: Scene, part: str) -> Scene | None:
    """Return the scene with one part replaced so that both cannot be the same event; None where that is impossible.

    part: agent, action, object, agent_trait, object_trait, place, time, manner, swap (roles) or negated.
    """
    world = lexicon()
    if part == "negated":
        return scene._replace(negated=not scene.negated)
    if part == "swap":
        if scene.target is None:
            return None
        (agent, number, trait), doer = scene.target, scene.doer
        swapped = scene._replace(agent=agent, agent_number=number, agent_trait=trait)
        swapped = swapped._replace(object=doer.noun, object_number=doer.number, object_trait=doer.trait)
        return swapped if fits(swapped) else None
    value = getattr(scene, part)
    if value is None:
        return None
    if part in ("agent", "object"):
        action = world.actions[scene.action]
        kinds = action.agents if part == "agent" else action.objects
        noun = _nearest(rng, world.noun_tree, value, nouns_below(kinds))
        changed = _with_noun(scene, part, noun) if noun else None
        return changed if changed and fits(changed) else None
    if part == "action":
        other = _another_action(rng, scene)
    elif part == "place":
        other = _nearest(rng, world.place_tree, value, places_for(scene))
    else:
        if part == "time":
            rivals = [time for time in world.times if time != value]
        else:
            table = world.manners if part == "manner" else world.traits
            possible = table if part == "manner" else _traits_of(getattr(scene, part.removesuffix("_trait")))
            rivals = [name for name in possible if table[name].family == table[value].family and name != value]
        other = draw(rng, rivals) if rivals else None
    return scene._replace(**{part: other}) if other else None


def generalise(rng: random.Random, scene: Scene, share: float) -> Scene:
    """Return a scene that the given one implies: each part is left out or generalised with probability `share`."""
    world = lexicon()
    if scene.negated:  # that no dog barks loudly implies neither that no animal barks nor that no dog barks
        return scene
    for detail in DETAILS:
        if rng.random() < share:
            scene = scene._replace(**{detail: None})
    if rng.random() < share:
        scene = _with_noun(scene, "agent", world.noun_tree.parents[scene.agent] or scene.agent)
    if scene.object and rng.random() < share:
        if "o" in world.actions[scene.action].codes and rng.random() < 0.5:
            scene = scene._replace(object=None, object_trait=None, object_number="one")
        else:
            scene = _with_noun(scene, "object", world.noun_tree.parents[scene.object] or scene.object)
    if scene.place and rng.random() < share:
        scene = scene._replace(place=world.place_tree.parents[scene.place] or scene.place)
    parent = world.action_tree.parents[scene.action]
    if parent and rng.random() < share:
        broader = scene._replace(action=parent)
        scene = broader if fits(broader) else scene
    return scene


def _related(tree: Tree, first: str | None, second: str | None) -> float:
    """Return 1 for the same concept, KIND for a kind of it, SIBLINGS for relatives, else 0."""
    if first is None or second is None:
        return 0.0
    if first == second:
        return 1.0
    if first in tree.above(second) or second in tree.above(first):
        return KIND
    distance = tree.distance(first, second)
    return SIBLINGS[distance] if distance is not None and distance < len(SIBLINGS) else 0.0


def shared_meaning(first: Scene, second: Scene) -> float:
    """Return how much meaning two scenes share, 0 to 1; symmetric, whatever the wording.

    It is the weighted mean, over the parts of WEIGHTS that either scene has, of how far the two agree there. Nouns,
    actions and places agree by KIND and SIBLINGS, other parts wholly or not at all. A trait is shared as far as its
    bearer is, a manner as far as its action is. Opposite actions, and one action affirmed and denied, share nothing.
    """
    world = lexicon()
    parts: list[tuple[float, float]] = []  # weight and shared fraction

    def add(name: str, shared: float) -> None:
        """Add a part; a detail may be in one scene alone, or in neither."""
        said = (getattr(first, name) is not None) + (getattr(second, name) is not None)
        if said:
            parts.append((WEIGHTS[name], shared) if said == 2 else (WEIGHTS[name] * UNSAID, 0.0))

    tree = world.noun_tree
    crossed = CROSSED * max(_related(tree, first.agent, second.object), _related(tree, second.agent, first.object))
    for role in ("agent", "object"):
        nouns = getattr(first, role), getattr(second, role)
        if nouns == (None, None):
            continue
        alike = 0.0 if None in nouns else max(_related(tree, *nouns), crossed)
        parts.append((WEIGHTS[role], alike))
        if None not in nouns:
            numbers = getattr(first, f"{role}_number"), getattr(second, f"{role}_number")
            same = 1.0 if numbers[0] == numbers[1] else 0.5 if "one" not in numbers else 0.0
            parts.append((WEIGHTS[f"{role}_number"], alike * same))
        add(f"{role}_trait", alike * (getattr(first, f"{role}_trait") == getattr(second, f"{role}_trait")))
    opposed = first.negated != second.negated or second.action in world.opposites.get(first.action, ())
    action = 0.0 if opposed else _related(world.action_tree, first.action, second.action)
    parts.append((WEIGHTS["action"], action))
    add("manner", float(first.manner == second.manner) * action)
    add("place", _related(world.place_tree, first.place, second.place))
    add("time", float(first.time == second.time))
    return sum(weight * share for weight, share in parts) / sum(weight for weight, _ in parts)


def grade(first: Scene, second: Scene) -> float:
    """Return the gold score of a pair, 0 to 5 in steps of 0.2."""
    return round(25 * shared_meaning(first, second)) / 5
