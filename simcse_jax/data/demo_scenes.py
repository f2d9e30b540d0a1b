"""Draw, change and compare scenes, the meaning of captions.

The grade of a pair is a function of its two scenes, defined in `shared_meaning`. Longer than most files here, as a
scene, what may change in it and what the change costs have to be read together.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, TypeVar

from simcse_jax.data.demo_lexicon import Tree, lexicon

Choice = TypeVar("Choice")

TOPICS = ("animals", "food", "music", "sport", "travel", "office", "home", "shopping", "people")

# The weight of each part of a scene, 0 for a part that neither scene has; the grade is the shared fraction.
WEIGHTS = {"agent": 0.24, "agent trait": 0.08, "agent number": 0.04, "action": 0.32, "manner": 0.06}
WEIGHTS |= {"object": 0.22, "object trait": 0.08, "object number": 0.03, "place": 0.10, "time": 0.07}
DETAILS = ("agent trait", "object trait", "manner", "place", "time")
UNSAID = 0.5  # factor for a detail that only one scene has: leaving it out costs half of what contradicting it does
KIND = 0.7  # a concept and what it is a kind of: dog, animal
SIBLINGS = (1.0, 0.4, 0.2)  # related concepts, by steps up to what they have in common: dog, cat; dog, cow
CROSSED = 0.4  # a participant found in the other role: a dog chases a boy, a boy chases a dog


class Entity(NamedTuple):
    """Describe who or what: a noun concept, `number` one, two, three or many, and a trait or None."""

    noun: str
    number: str = "one"
    trait: str | None = None


class Scene(NamedTuple):
    """Describe the meaning of one caption; None is what it does not say."""

    agent: Entity
    action: str
    object: Entity | None = None
    negated: bool = False
    manner: str | None = None
    place: str | None = None
    time: str | None = None


def draw(rng: random.Random, options: Sequence[Choice]) -> Choice:
    """Return one of the options. Only `random()` is used, whose sequence Python promises never to change."""
    return options[int(rng.random() * len(options))]


def topic_of(scene: Scene) -> str:
    """Return what the scene is about, one of TOPICS, from the action, who does it and what it is done to."""
    world = lexicon()
    topic = world.actions[scene.action].topic
    if topic.startswith("!"):
        return topic[1:]
    roots = [world.noun_tree.above(entity.noun)[-1] for entity in (scene.agent, scene.object) if entity]
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
    found = []
    for name, action in lexicon().actions.items():
        targets = [Entity(noun) for noun in action.objects] or [None]
        scenes = [Scene(Entity(agent), name, target) for agent in action.agents for target in targets]
        if any(topic_of(scene) == topic for scene in scenes):
            found.append(name)
    return tuple(found)


@cache
def _options(table: str, name: str) -> tuple[str, ...]:
    """Return the traits that fit a noun, or the manners that fit an action."""
    world = lexicon()
    if table == "trait":
        kinds = world.noun_tree.above(name)
        possible = {
            trait: entry.fits for trait, entry in world.traits.items() if world.noun_tree.is_a(name, entry.fits)
        }
        return tuple(trait for trait, fits in possible.items() if not any(f"-{kind}" in fits for kind in kinds))
    return tuple(manner for manner, entry in world.manners.items() if entry.fits[0] in world.actions[name].codes)


def places_for(scene: Scene) -> tuple[str, ...]:
    """Return where such a scene may happen."""
    world = lexicon()
    return world.action_places.get(scene.action) or world.topic_places[topic_of(scene)]


def _draw_entity(rng: random.Random, kinds: tuple[str, ...], single: bool) -> Entity:
    noun = draw(rng, nouns_below(kinds))
    number = "one" if single else draw(rng, ("one",) * 6 + ("two", "many", "many", "three"))
    traits = _options("trait", noun)
    trait = draw(rng, traits) if traits and rng.random() < 0.35 else None
    return Entity(noun, "one" if lexicon().nouns[noun].mass else number, trait)


def draw_scene(rng: random.Random, topic: str | None = None) -> Scene:
    """Return a scene about the topic, or about any."""
    world = lexicon()
    topic = topic or draw(rng, TOPICS)
    while True:
        name = draw(rng, _actions_about(topic))
        action = world.actions[name]
        agent = _draw_entity(rng, action.agents, "1" in action.codes)
        target = _draw_entity(rng, action.objects, "1" in action.codes) if action.objects else None
        scene = Scene(agent, name, target, negated=rng.random() < 0.04)
        if (target is None or target.noun != agent.noun) and topic_of(scene) == topic:
            break
    manners = _options("manner", name)
    return scene._replace(
        manner=draw(rng, manners) if manners and rng.random() < 0.25 else None,
        place=draw(rng, places_for(scene)) if rng.random() < 0.6 else None,
        time=draw(rng, tuple(world.times)) if rng.random() < 0.2 else None,
    )


@cache
def _actions_with(agent: str, target: str | None) -> frozenset[str]:
    """Return the actions that these nouns can take part in."""
    world = lexicon()
    tree, found = world.noun_tree, set()
    for name, action in world.actions.items():
        taken = tree.is_a(target, action.objects) and target != agent if target else not action.objects
        if taken and tree.is_a(agent, action.agents):
            found.add(name)
    return frozenset(found)


def fits(scene: Scene) -> bool:
    """Return whether these participants can take part in this action, in these numbers and this manner."""
    action, target = lexicon().actions[scene.action], scene.object
    if scene.action not in _actions_with(scene.agent.noun, target.noun if target else None):
        return False
    if "1" in action.codes and (scene.agent.number != "one" or (target and target.number != "one")):
        return False
    return scene.manner is None or scene.manner in _options("manner", scene.action)


def _nearest(rng: random.Random, tree: Tree, name: str, options: Sequence[str]) -> str | None:
    """Return another of the options: half the time a relative of `name`, if there is one."""
    others = [option for option in options if option != name and name not in tree.above(option)]
    others = [option for option in others if option not in tree.above(name)]
    close = [option for option in others if tree.distance(name, option) is not None]
    if close and rng.random() < 0.5:
        return draw(rng, close)
    return draw(rng, others) if others else None


def _another_noun(rng: random.Random, entity: Entity, kinds: tuple[str, ...]) -> Entity | None:
    noun = _nearest(rng, lexicon().noun_tree, entity.noun, nouns_below(kinds))
    if noun is None:
        return None
    trait = entity.trait if entity.trait in _options("trait", noun) else None
    return Entity(noun, "one" if lexicon().nouns[noun].mass else entity.number, trait)


def _another_trait(rng: random.Random, entity: Entity | None) -> Entity | None:
    """Return the entity with a trait that excludes the one it has."""
    if entity is None or entity.trait is None:
        return None
    traits = lexicon().traits
    rivals = [t for t in _options("trait", entity.noun) if traits[t].family == traits[entity.trait].family]
    rivals = [trait for trait in rivals if trait != entity.trait]
    return entity._replace(trait=draw(rng, rivals)) if rivals else None


def _another_action(rng: random.Random, scene: Scene) -> Scene | None:
    world = lexicon()
    opposites = [other for other in world.opposites.get(scene.action, ()) if fits(scene._replace(action=other))]
    if opposites and rng.random() < 0.6:
        return scene._replace(action=draw(rng, opposites))
    possible = sorted(_actions_with(scene.agent.noun, scene.object.noun if scene.object else None))
    possible = [name for name in possible if fits(scene._replace(action=name))]
    name = _nearest(rng, world.action_tree, scene.action, possible)
    return scene._replace(action=name) if name else None


def contradict(rng: random.Random, scene: Scene, part: str) -> Scene | None:
    """Return the scene with one part replaced so that both cannot be the same event; None where that is impossible.

    part: agent, action, object, agent trait, object trait, place, time, manner, swap (roles) or negated.
    """
    world = lexicon()
    changed: Scene | None = None
    if part == "negated":
        return scene._replace(negated=not scene.negated)
    if part == "action":
        return _another_action(rng, scene)
    if part == "agent":
        agent = _another_noun(rng, scene.agent, world.actions[scene.action].agents)
        changed = scene._replace(agent=agent) if agent else None
    elif part == "object" and scene.object:
        target = _another_noun(rng, scene.object, world.actions[scene.action].objects)
        changed = scene._replace(object=target) if target else None
    elif part == "agent trait":
        agent = _another_trait(rng, scene.agent)
        return scene._replace(agent=agent) if agent else None
    elif part == "object trait":
        target = _another_trait(rng, scene.object)
        return scene._replace(object=target) if target else None
    elif part == "place" and scene.place:
        place = _nearest(rng, world.place_tree, scene.place, places_for(scene))
        return scene._replace(place=place) if place else None
    elif part == "time" and scene.time:
        return scene._replace(time=draw(rng, [time for time in world.times if time != scene.time]))
    elif part == "manner" and scene.manner:
        family = world.manners[scene.manner].family
        rivals = [name for name, entry in world.manners.items() if entry.family == family and name != scene.manner]
        return scene._replace(manner=draw(rng, rivals))
    elif part == "swap" and scene.object:
        changed = scene._replace(agent=scene.object, object=scene.agent)
    return changed if changed and fits(changed) else None


def without(scene: Scene, detail: str) -> Scene:
    """Return the scene without one of DETAILS."""
    if detail == "agent trait":
        return scene._replace(agent=scene.agent._replace(trait=None))
    if detail == "object trait":
        return scene._replace(object=scene.object._replace(trait=None)) if scene.object else scene
    return scene._replace(**{detail: None})


def _climb(entity: Entity, parent: str | None) -> Entity:
    world = lexicon()
    if parent is None:
        return entity
    trait = entity.trait if entity.trait in _options("trait", parent) else None
    return Entity(parent, "one" if world.nouns[parent].mass else entity.number, trait)


def generalise(rng: random.Random, scene: Scene, share: float) -> Scene:
    """Return a scene that the given one implies: each part is left out or generalised with probability `share`."""
    world = lexicon()
    if scene.negated:  # that no dog barks loudly implies neither that no animal barks nor that no dog barks
        return scene
    for detail in DETAILS:
        if rng.random() < share:
            scene = without(scene, detail)
    if rng.random() < share:
        scene = scene._replace(agent=_climb(scene.agent, world.noun_tree.parents[scene.agent.noun]))
    if scene.object and rng.random() < share:
        optional = "o" in world.actions[scene.action].codes and rng.random() < 0.5
        target = None if optional else _climb(scene.object, world.noun_tree.parents[scene.object.noun])
        scene = scene._replace(object=target)
    if scene.place and rng.random() < share:
        scene = scene._replace(place=world.place_tree.parents[scene.place] or scene.place)
    parent = world.action_tree.parents[scene.action]
    if parent and rng.random() < share:
        broader = scene._replace(action=parent)
        scene = broader if fits(broader) else scene
    return scene


def _related(tree: Tree, first: str, second: str) -> float:
    """Return 1 for the same concept, KIND for a kind of it, SIBLINGS for relatives, else 0."""
    if first == second:
        return 1.0
    if first in tree.above(second) or second in tree.above(first):
        return KIND
    distance = tree.distance(first, second)
    return SIBLINGS[distance] if distance is not None and distance < len(SIBLINGS) else 0.0


def _alike(first: Entity | None, second: Entity | None) -> float:
    return _related(lexicon().noun_tree, first.noun, second.noun) if first and second else 0.0


def _entity_parts(role: str, first: Entity | None, second: Entity | None, crossed: float) -> list[tuple[float, float]]:
    """Return weight and shared fraction of noun, trait and number. A trait is shared as far as its bearer is."""
    if first is None and second is None:
        return []
    alike = max(_alike(first, second), CROSSED * crossed)
    parts = [(WEIGHTS[role], alike)]
    if first and second:
        same = 1.0 if first.number == second.number else 0.5 if "one" not in (first.number, second.number) else 0.0
        parts.append((WEIGHTS[f"{role} number"], alike * same))
    traits = (first.trait if first else None, second.trait if second else None)
    return parts + _detail(f"{role} trait", *traits, alike * (traits[0] == traits[1]))


def _detail(name: str, first: str | None, second: str | None, shared: float) -> list[tuple[float, float]]:
    """Return weight and shared fraction of a detail, which one scene or both may lack."""
    if first is None and second is None:
        return []
    if first is None or second is None:
        return [(WEIGHTS[name] * UNSAID, 0.0)]
    return [(WEIGHTS[name], shared)]


def shared_meaning(first: Scene, second: Scene) -> float:
    """Return how much meaning two scenes share, 0 to 1; symmetric, whatever the wording.

    It is the weighted mean, over the parts of WEIGHTS that either scene has, of how far the two agree there. Nouns,
    actions and places agree by KIND and SIBLINGS, other parts wholly or not at all. A manner is shared as far as its
    action is. Opposite actions, and one action affirmed and denied, share nothing.
    """
    world = lexicon()
    crossed = max(_alike(first.agent, second.object), _alike(second.agent, first.object))
    parts = _entity_parts("agent", first.agent, second.agent, crossed)
    parts += _entity_parts("object", first.object, second.object, crossed if first.object and second.object else 0)
    opposed = first.negated != second.negated or second.action in world.opposites.get(first.action, ())
    action = 0.0 if opposed else _related(world.action_tree, first.action, second.action)
    parts.append((WEIGHTS["action"], action))
    parts += _detail("manner", first.manner, second.manner, float(first.manner == second.manner) * action)
    place = _related(world.place_tree, first.place, second.place) if first.place and second.place else 0.0
    parts += _detail("place", first.place, second.place, place)
    parts += _detail("time", first.time, second.time, float(first.time == second.time))
    return sum(weight * share for weight, share in parts) / sum(weight for weight, _ in parts)


def grade(first: Scene, second: Scene) -> float:
    """Return the gold score of a pair, 0 to 5 in steps of 0.2."""
    return round(25 * shared_meaning(first, second)) / 5
