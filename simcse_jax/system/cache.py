"""Find the folder for data that can be made again."""

import os
from pathlib import Path

from simcse_jax.system.errors import UserError


def cache_folder(kind: str, chosen: str | os.PathLike[str] | None = None) -> Path:
    """Return the writable folder `kind` in `chosen`, or else in $SIMCSE_CACHE, or else in ~/.cache/simcse_jax.

    Makes the folder if there is none. Users may delete everything in it at any time. Raises UserError when it cannot
    be made or written.
    """
    root = Path(chosen or os.environ.get("SIMCSE_CACHE") or "~/.cache/simcse_jax") / kind
    try:
        root = root.expanduser()
        root.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home folder, as in containers
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"The cache folder {root} cannot be made: {reason}\nSet SIMCSE_CACHE to another folder."
        ) from error
    if not os.access(root, os.W_OK):
        raise UserError(f"The cache folder {root} is not writable. Set SIMCSE_CACHE to a folder that you can write.")
    return root
