"""Define the flags that say which model a command encodes with, and how; open the model that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from simcse_jax.system import precision_flags
from simcse_jax.system.precision_flags import DTYPE, PRODUCTS

if TYPE_CHECKING:
    from simcse_jax.serving.model import SimCSE

flags.adopt_module_key_flags(precision_flags)  # --help shows them
MODEL = flags.DEFINE_string("model", "", "A run folder, an exported or Hugging Face folder, or a Hub name.")
_POOLER = flags.DEFINE_string("pooler", "", "The pooler, if not the one that the model was trained for.")
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length", None, "Tokens at which texts are cut. Default: 128, or the model's own limit if lower.", lower_bound=3
)
_TRUNCATE = flags.DEFINE_integer(
    "truncate_dim",
    None,
    "First features of a vector to keep, before it is scaled. Default: the folder's setting, or all.",
    lower_bound=1,
)


def open_simcse() -> SimCSE:
    """Open the model of --model as the other flags say; start the devices, and keep compiled programs."""
    from simcse_jax.serving.model import SimCSE
    from simcse_jax.system.compiled import keep_compiled
    from simcse_jax.system.devices import start_devices

    start_devices()
    keep_compiled()
    how = (_POOLER.value or None, DTYPE.value, _MAX_LENGTH.value, PRODUCTS.value, _TRUNCATE.value)
    return SimCSE(MODEL.value, *how)
