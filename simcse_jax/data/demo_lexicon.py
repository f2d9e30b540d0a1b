"""Read the words of the demo's world: concepts, the forms that each may take, and what each is a kind of.

They are in demo_lexicon.txt, a line a concept, so that one is added by typing one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).parent / "demo_lexicon.txt"


class Noun(NamedTuple):
    """Hold singular and plural of each synonym; `mass` nouns have no plural."""

    forms: tuple[tuple[str, str], ...]
    mass: bool


class Action(NamedTuple):
    """Hold who may do it to what, and how it is said; the file says what the fields mean."""

    agents: tuple[str, ...]
    objects: tuple[str, ...]
    topic: str
    codes: str
    forms: tuple[str, ...]
    converse: tuple[str, ...]


class Trait(NamedTuple):
    """Hold its family, what it fits (noun concepts and all below them, or codes of actions), and how it is said."""

    family: str
    fits: tuple[str, ...]
    forms: tuple[str, ...]


class Tree:
    """Hold the concepts of one table and what each is a kind of."""

    def __init__(self, parents: dict[str, str | None]):
        self.parents = parents
        self._above = {name: self._line(name) for name in parents}

    def _line(self, name: str) -> tuple[str, ...]:
        line = [name]
        while (parent := self.parents[line[-1]]) is not None:
            line.append(parent)
        return tuple(line)

    def above(self, name: str) -> tuple[str, ...]:
        """Return the concept itself, its parent, and so on up to the root."""
        return self._above[name]

    def is_a(self, name: str, kinds: tuple[str, ...]) -> bool:
        """Return whether the concept is one of the kinds or below one."""
        return any(kind in kinds for kind in self._above[name])

    def distance(self, first: str, second: str) -> int | None:
        """Return the steps from the farther of the two up to what they have in common; None for nothing in common."""
        up, down = self._above[first], self._above[second]
        for step, name in enumerate(up):
            if name in down:
                return max(step, down.index(name))
        return None


class Lexicon(NamedTuple):
    """Hold all tables."""

    nouns: dict[str, Noun]
    noun_tree: Tree
    leaves: tuple[str, ...]  # nouns with nothing below them
    topics: dict[str, str]  # root noun -> topic
    actions: dict[str, Action]
    action_tree: Tree
    traits: dict[str, Trait]
    manners: dict[str, Trait]
    places: dict[str, tuple[str, ...]]
    place_tree: Tree
    topic_places: dict[str, tuple[str, ...]]
    action_places: dict[str, tuple[str, ...]]
    times: dict[str, tuple[str, ...]]
    opposites: dict[str, tuple[str, ...]]


def _plural(singular: str) -> str:
    if singular.endswith(("s", "x", "ch", "sh")):
        return singular + "es"
    if singular.endswith("y") and singular[-2] not in "aeiou":
        return singular[:-1] + "ies"
    return singular + "s"


@cache
def _tables() -> dict[str, str]:
    """Return the sections of the file by their names, without comments."""
    lines = [line for line in FILE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    sections: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("["):
            sections[line.strip("[]")] = []
        else:
            sections[[*sections][-1]].append(line)
    return {name: "\n".join(section) for name, section in sections.items()}


def _lines(table: str) -> Iterator[tuple[str, str | None, str]]:
    """Yield name, parent or None, and the rest of each line of a table."""
    for line in _tables()[table].splitlines():
        head, rest = line.split(":", 1)
        name, _, parent = head.partition(" < ")
        yield name.strip(), parent.strip() or None, rest.strip()


def _kinds(text: str) -> tuple[str, ...]:
    """Return the noun concepts of a list, with groups written out."""
    groups = {name: rest for name, _, rest in _lines("groups")}
    return tuple(" ".join(groups.get(word, word) for word in text.split()).split())


def _list(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _read_nouns() -> tuple[dict[str, Noun], dict[str, str | None], dict[str, str]]:
    nouns, parents, topics = {}, {}, {}
    for head, parent, rest in _lines("nouns"):
        name, _, topic = head.partition(" @")
        forms = []
        for form in _list(rest):
            singular, _, plural = form.rstrip("*").partition("/")
            forms.append((singular, plural or _plural(singular)))
        nouns[name], parents[name] = Noun(tuple(forms), "*" in rest), parent
        if topic:
            topics[name] = topic
    return nouns, parents, topics


def _read_actions() -> tuple[dict[str, Action], dict[str, str | None]]:
    actions, parents = {}, {}
    for name, parent, rest in _lines("actions"):
        who, topic, codes, forms, *converse = (part.strip() for part in rest.split(";"))
        agents, _, objects = who.partition(">")
        actions[name] = Action(_kinds(agents), _kinds(objects), topic, codes, _list(forms), _list(*converse or [""]))
        parents[name] = parent
    return actions, parents


def _read_traits(table: str) -> dict[str, Trait]:
    traits = {}
    for name, family, rest in _lines(table):
        fits, forms = rest.split(":")
        traits[name] = Trait(family or name, _kinds(fits), _list(forms))
    return traits


@cache
def lexicon() -> Lexicon:
    """Read all tables, once."""
    nouns, noun_parents, topics = _read_nouns()
    actions, action_parents = _read_actions()
    opposites: dict[str, tuple[str, ...]] = {}
    for pair in _list(_tables()["opposites"].replace("\n", " ")):
        one, other = pair.split()
        opposites[one] = (*opposites.get(one, ()), other)
        opposites[other] = (*opposites.get(other, ()), one)
    inner = set(noun_parents.values())
    return Lexicon(
        nouns=nouns,
        noun_tree=Tree(noun_parents),
        leaves=tuple(name for name in nouns if name not in inner or name == "ball"),
        topics=topics,
        actions=actions,
        action_tree=Tree(action_parents),
        traits=_read_traits("traits"),
        manners=_read_traits("manners"),
        places={name: _list(rest) for name, _, rest in _lines("places")},
        place_tree=Tree({name: parent for name, parent, _ in _lines("places")}),
        topic_places={name: tuple(rest.split()) for name, _, rest in _lines("topic places")},
        action_places={name: tuple(rest.split()) for name, _, rest in _lines("action places")},
        times={name: _list(rest) for name, _, rest in _lines("times")},
        opposites=opposites,
    )
