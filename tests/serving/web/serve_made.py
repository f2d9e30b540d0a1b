"""A process that serves the made model: `python -m tests.serving.web.serve_made SECONDS_A_CALL [TIME_LIMIT_S]`."""

import sys
import time

import numpy as np

from simcse_jax.serving.web.guard import Settings
from simcse_jax.serving.web.launch import serve
from tests.serving.web.made_model import MadeIndex, MadeModel


class SlowModel(MadeModel):
    """As slow as it is told to be, for texts that begin with "slow"."""

    def encode(self, sentences: list[str], *, prompt: str | None = None) -> np.ndarray:
        if sentences[0].startswith("slow"):
            time.sleep(float(sys.argv[1]))
        return super().encode(sentences, prompt=prompt)


if __name__ == "__main__":
    time_limit_s = float(sys.argv[2]) if len(sys.argv) > 2 else 30.0
    serve(SlowModel(MadeIndex()), Settings(name="made", port=0, time_limit_s=time_limit_s))
