"""Say which layers of a model may be kept without the others."""

from __future__ import annotations

from collections.abc import Sequence

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.system.errors import UserError


def require_layers(name: str, flag: str, kept: Sequence[int], sizes: Architecture) -> None:
    """Raise UserError where layers are to be kept that there are not, or that cannot be without others.

    kept: numbers from 0, ascending. name, flag: of what the user gave, for the messages.
    """
    named, count = f"{name} = {','.join(map(str, kept))!r}", sizes.num_hidden_layers
    if max(kept) >= count:
        some = ",".join(map(str, range(0, count, 2)))
        raise UserError(f"{named}, and the model has the layers 0 to {count - 1}.\nFor example {flag}={some}")
    if sizes.shared_layers:
        raise UserError(f"{named}, and all layers of this model have the same parameters.\nLeave it out: {flag}=")
    every = next((n for n, layer in enumerate(kept) if n and layer + 1 not in sizes.local_layers), len(kept))
    is_regular = all((n % every > 0) == (layer + 1 in sizes.local_layers) for n, layer in enumerate(kept))
    if sizes.pre_norm and (kept[0] or (sizes.local_layers and not is_regular)):
        raise UserError(
            f"{named}: of this family the first layer, which has no norm before it, must stay the first, and every "
            "n-th layer attend to all tokens, as config.json of an export can say.\nFor example "
            f"{flag}={','.join(map(str, range(count // 2)))}"
        )


def read_layers(given: Sequence[str]) -> tuple[int, ...]:
    """Return the layers that --keep_layers names; UserError unless they are numbers from 0, ascending."""
    kept = tuple(int(number) if number.strip().isdecimal() else -1 for number in given)
    if list(kept) != sorted({*kept}) or min(kept, default=0) < 0:
        raise UserError(
            f"--keep_layers={','.join(given)}: give numbers of layers from 0, ascending, each once.\n"
            "For example --keep_layers=0,1"
        )
    return kept
