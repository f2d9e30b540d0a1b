"""Join the sections of a recipe to one schema, which states every key once: default, range, meaning, effect, layout.

`configs/base.py`, the checks, `--help-config` and what a run compares when it resumes all follow from here. The
defaults are the paper's, and its code's, for unsupervised BERT-base (docs/paper.md).

A new key needs its line in its section, `config/sections/`, and nothing else. Relations between keys beyond `effective`
are checked in checks.py.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

from simcse_jax.config.keys import Key, section_keys
from simcse_jax.config.sections.data import DataConfig
from simcse_jax.config.sections.model import ModelConfig
from simcse_jax.config.sections.objective import MlmConfig, ObjectiveConfig
from simcse_jax.config.sections.optimizer import OptimizerConfig
from simcse_jax.config.sections.run import CheckpointConfig, EvalConfig, MeshConfig, TrainConfig
from simcse_jax.config.sections.teacher import TeacherConfig


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Hold one source of a mixture, data.sources.NAME."""

    name: str
    weight: float
    data: DataConfig  # the section, with the source's own keys in place of the section's
    loss: str
    dev: str = ""

    def flat(self, config: Config) -> dict[str, Any]:
        """Return its keys by their full names: the weight, dev data if any, and what differs from the whole run's."""
        own = {"weight": self.weight} | ({"dev": self.dev} if self.dev else {})
        if self.loss != config.objective.loss:
            own["loss"] = self.loss
        for field in SOURCE_DATA:
            if (value := getattr(self.data, field)) != getattr(config.data, field):
                own[field] = value
        return {f"{SOURCES}{self.name}.{field}": value for field, value in own.items()}


@dataclasses.dataclass(frozen=True)
class Config:
    """Hold a whole recipe, checked. `group_size` is no key: `resolve` computes it."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    objective: ObjectiveConfig
    mlm: MlmConfig
    teacher: TeacherConfig
    optimizer: OptimizerConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    mesh: MeshConfig
    sources: tuple[SourceConfig, ...] = ()  # of a mixture, by name
    group_size: int = 0

    def flat(self) -> dict[str, Any]:
        """Return every key by its full name, "train.seed" for example."""
        values = {name: getattr(getattr(self, section), field) for name, (section, field) in _PLACES.items()}
        return functools.reduce(operator.or_, [source.flat(self) for source in self.sources], values)

    @property
    def by_source(self) -> dict[str, Config]:
        """Return the config that each source with a weight is read by, by its name; {"": self} without sources."""
        if not self.sources:
            return {"": self}
        return {
            source.name: dataclasses.replace(
                self, data=source.data, objective=dataclasses.replace(self.objective, loss=source.loss), sources=()
            )
            for source in self.sources
            if source.weight
        }

    @property
    def by_loss(self) -> dict[str, Config]:
        """Return a config for each loss, objective.loss first; those of sources have what a batch of theirs has."""
        return {self.objective.loss: self} | {part.objective.loss: part for part in self.by_source.values()}


SECTIONS: dict[str, Any] = {
    name: kind for name, kind in get_type_hints(Config).items() if name not in ("sources", "group_size")
}
KEYS: dict[str, Key] = {made.name: made for name, kind in SECTIONS.items() for made in section_keys(name, kind)}
_PLACES = {name: name.split(".") for name in KEYS}
# The keys of a source of a mixture, data.sources.NAME.KEY, by KEY.
SOURCES = "data.sources."
SOURCE_DATA = ("files", "columns", "positive", "prompts", "scores")  # as in the section data, where they are left out
SOURCE_KEYS: dict[str, Key] = {
    "weight": Key(
        default=1.0,
        meaning="The source's share in training is proportional to it (data.mixing_temperature); 0 leaves it out.",
        at_least=0,
        example=2.0,
        name="weight",
        type=float,
    ),
    "dev": Key(
        default="",
        meaning="Dev data of the source, as eval.data takes it, scored with the source's prompts as dev/NAME/MEASURE. "
        'With any, dev/mean chooses the best checkpoint: the mean over them and eval.data; "": none.',
        example="pairs.tsv",
        resumable=True,
        local=True,
        name="dev",
    ),
    "loss": KEYS["objective.loss"],
    **{field: KEYS[f"data.{field}"] for field in SOURCE_DATA},
}
LAYOUT_KEYS = frozenset(made.name for made in KEYS.values() if made.layout)


def find_key(name: str) -> Key | None:
    """Return the key of this full name, that of a source included; None where there is none."""
    if name.startswith(SOURCES):
        source, _, field = name.removeprefix(SOURCES).partition(".")
        return dataclasses.replace(SOURCE_KEYS[field], name=name) if source and field in SOURCE_KEYS else None
    return KEYS.get(name)


def resumable(names: Iterable[str]) -> set[str]:
    """Return those of the keys that a run may resume with another value of."""
    return {name for name in names if (made := find_key(name)) and (made.layout or made.resumable)}


def is_local(name: str) -> bool:
    """Return whether the hosts of one run may each have another value of this key."""
    made = find_key(name)
    return made is not None and made.local


def defaults() -> dict[str, Any]:
    """Return every key at its default, which is also what a key means in a recipe written before the key existed."""
    return {name: made.default for name, made in KEYS.items()}


def nested(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the values of full names by section and field."""
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in values.items():
        section, _, field = name.partition(".")
        sections[section][field] = value
    return sections
