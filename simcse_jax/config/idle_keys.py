"""Keys of a recipe that are set and have no effect beside the others, such as a margin without a loss that has one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from simcse_jax.data.positives import CHANGES

# key: (the key that decides whether it has an effect, the values with which it has; None: any but 0 and "")
DECIDED: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "data.rate": ("data.positive", (*CHANGES, "mask")),
    "data.window": ("data.positive", ("next_sentence",)),
    "data.synonyms": ("data.positive", ("synonym",)),
    "data.mask_model": ("data.positive", ("mask",)),
    "model.cutoff_rate": ("model.cutoff", None),
    "model.momentum": ("model.second_encoder", ("momentum",)),
    "objective.temperature": ("objective.loss", ("info_nce", "sigmoid")),
    "objective.learned_temperature": ("objective.loss", ("info_nce", "sigmoid")),
    "objective.learning_rate": ("objective.learned_temperature", None),
    "objective.hard_negative_weight": ("objective.loss", ("info_nce",)),
    "objective.bias": ("objective.loss", ("sigmoid",)),
    "objective.margin": ("objective.loss", ("triplet", "margin_ranking")),
    "objective.mining": ("objective.loss", ("triplet",)),
    "objective.similarity": ("objective.loss", ("info_nce", "margin_ranking", "sigmoid")),
    "objective.symmetric": ("objective.loss", ("info_nce", "triplet", "margin_ranking", "sigmoid")),
    "objective.widths": ("objective.loss", ("info_nce", "triplet", "margin_ranking", "sigmoid")),
    "objective.mask_duplicates": ("objective.loss", ("info_nce", "triplet", "margin_ranking", "sigmoid")),
    "mlm.rate": ("mlm.weight", None),
    "mlm.whole_word": ("mlm.weight", None),
    "mlm.validation": ("mlm.weight", None),
}
# What a decider that takes any value may be set to.
FOR_EXAMPLE = {"model.cutoff": "token", "mlm.weight": "0.1", "objective.learned_temperature": "True"}


def idle_keys(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """The keys whose values are not their defaults, and change nothing; both arguments: every key by its full name."""
    return [
        key
        for key, (decider, serves) in DECIDED.items()
        if values[key] != defaults[key] and not _in_effect(values[decider], serves)
    ]


def way_out(key: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """What an error says of an idle key."""
    decider, serves = DECIDED[key]
    first, *others = serves or (FOR_EXAMPLE[decider],)
    or_one_of = f" (or {', '.join(others)})" if others else ""
    return (
        f"{key} = {values[key]!r} has no effect with {decider} = {values[decider]!r}.\n"
        f"Leave it out (--config.{key}={defaults[key]}), or use --config.{decider}={first}"
        f"{or_one_of}."
    )


def _in_effect(value: Any, serves: Iterable[str] | None) -> bool:
    return bool(value) if serves is None else value in serves
