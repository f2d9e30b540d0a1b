"""Define what a loss is: a plain function of an anchor's similarities, and what a recipe may set of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from simcse_jax.objective import tiles
from simcse_jax.objective.tiles import Anchors, Candidates, Rules, Statistics

# Keys of the section `objective` that serve every loss.
COMMON_KEYS = ("symmetric", "mask_duplicates", "false_negatives", "tile", "widths", "layers")
# What a loss learns, by name, scalars: `log_temperature`, `bias`.
Learned = Mapping[str, jax.Array]


class LearnedScalar(NamedTuple):
    """Describe a scalar that training can learn in place of a fixed option."""

    name: str  # in the parameters; it is logged under the option's name
    from_option: Callable[[float], float]  # the option's value to the parameter's start
    to_option: Callable[[jax.Array], jax.Array]  # the parameter to the value that the loss uses


TEMPERATURE = LearnedScalar("log_temperature", math.log, jnp.exp)
BIAS = LearnedScalar("bias", float, lambda x: x)


@dataclass(frozen=True)
class Loss:
    """Describe a loss.

    function: (rules, anchors, candidates, *, OPTIONS) -> (losses float[b], statistics); its keyword-only parameters are
    the keys of the recipe's section `objective` that it reads. learned: by option, what is learned with
    objective.learned_temperature. takes_dot: whether similarities may be dot products instead of cosines.
    """

    function: Callable[..., Any]
    learned: Mapping[str, LearnedScalar] = field(default_factory=dict)
    takes_dot: bool = True

    def of_anchors(
        self, rules: Rules, options: Mapping[str, Any], learned: Learned, anchors: Anchors, candidates: Candidates
    ) -> tuple[jax.Array, Statistics]:
        """Return the losses float[b] of anchors, and their statistics; learned: in place of some options."""
        return self.function(rules, anchors, candidates, **self.with_learned(options, learned))

    @property
    def options(self) -> tuple[str, ...]:
        """The keys that only some losses have, such as "margin"."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys of the section `objective` that have an effect with this loss."""
        similarity = ("similarity",) if self.takes_dot else ()
        return (*self.options, *similarity, *(("learned_temperature",) if self.learned else ()), *COMMON_KEYS)

    def initial_scalars(self, options: Mapping[str, float]) -> dict[str, float]:
        """Return the start of what is learned, by the names of the parameters."""
        return {scalar.name: scalar.from_option(options[option]) for option, scalar in self.learned.items()}

    def with_learned(self, options: Mapping[str, Any], learned: Learned) -> dict[str, Any]:
        """Return the options, with the values of learned scalars in place of fixed ones."""
        scalars = {option: scalar for option, scalar in self.learned.items() if scalar.name in learned}
        return {**options, **{option: scalar.to_option(learned[scalar.name]) for option, scalar in scalars.items()}}


class Scores(NamedTuple):
    """Hold the similarities of a tile's anchors with all candidates of the global batch."""

    positive: jax.Array  # float[a]: with the own positive
    candidates: jax.Array  # float[a, n]: with every candidate
    is_negative: jax.Array  # bool[a, n]: which candidates are negatives: not the own positive, no duplicate of it


@dataclass(frozen=True)
class PairwiseLoss(Loss):
    """Describe a loss whose function is (scores, *, OPTIONS) -> float[a], of the `Scores` of some anchors.

    A device holds the similarities of one tile of anchors with all candidates, and computes them again in the backward
    pass.
    """

    def of_anchors(
        self, rules: Rules, options: Mapping[str, Any], learned: Learned, anchors: Anchors, candidates: Candidates
    ) -> tuple[jax.Array, Statistics]:
        """Return what `Loss.of_anchors` does."""

        def of_tile(some: Anchors) -> tuple[jax.Array, Statistics]:
            scored = tiles.compare(rules, some, candidates)
            positive = jnp.where(scored.is_positive, scored.similarities, 0).sum((1, 2))
            flat = (len(positive), -1)
            is_negative = (scored.is_counted & ~scored.is_positive).reshape(flat)
            scores = Scores(positive, scored.similarities.reshape(flat), is_negative)
            losses = self.function(scores, **self.with_learned(options, learned))
            correct = (scored.closest(candidates)[1] == some.ids).astype(losses.dtype)
            return losses, jax.lax.stop_gradient(scored.statistics()._replace(correct=correct))

        of_tiles = jax.lax.map(jax.checkpoint(of_tile), tiles.split(anchors, rules.tile))
        return tiles.join(of_tiles, len(anchors.z))


def mean_where(values: jax.Array, used: jax.Array) -> jax.Array:
    """Return [a]: the mean of values [a, n] over those used; 0 where none is."""
    return jnp.where(used, values, 0).sum(1) / jnp.maximum(used.sum(1), 1)
