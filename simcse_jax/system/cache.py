"""Find the folder for data that can be made again."""

import os
from pathlib import Path

from simcse_jax.system.errors import UserError


def cache_folder(kind: str, chosen: str | os.PathLike[str] | None = None) -> Path:
    """Return the writable folder `kind` in `chosen`, or else in $SIMCSE_CACHE, or else in ~/.cache/simcse_jax.

    Makes the folder if there is none. Users may delete everything in it at any time. Raises UserError when it cannot
    be made or written.
    """
    root = Path(chosen or os.environ.get("SIMCSE_CACHE") or Path("~/.cache/simcse_jax")).expanduser() / kind
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The cache folder {root} cannot be made: {error.strerror}.\nSet SIMCSE_CACHE to another folder."
        ) from error
    if not os.access(root, os.W_OK):
        raise UserError(f"The cache folder {root} is not writable. Set SIMCSE_CACHE to a folder that you can write.")
    return root
