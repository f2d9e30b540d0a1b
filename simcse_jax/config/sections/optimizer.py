"""State the keys of the optimizer and its schedule."""

from __future__ import annotations

import dataclasses

from simcse_jax.config.keys import When, key

# What `training/optimizer.py` has.
OPTIMIZERS = ("adamw", "lion", "adafactor", "muon")
SCHEDULES = ("linear", "cosine", "constant", "warmup_stable_decay")
DECAYED = ("matrices", "kernels", "all")
_ADAM_OR_LION = When("optimizer.name", ("adamw", "lion", "muon"))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Keys of the optimizer and its schedule."""

    name: str = key(
        "adamw",
        """The rule of updates. "adamw": the paper's; "lion": the sign of a mean of gradients, half of AdamW's state
        (its paper: a third to a tenth of AdamW's learning rate, b2 0.99); "adafactor": second moments as means of rows
        and columns, hardly any state; "muon": orthogonal updates of the layers' matrices, scaled to AdamW's size so
        that its learning rates serve, and AdamW for the rest.""",
        one_of=OPTIMIZERS,
        example="lion",
    )
    learning_rate: float = key(3e-5, "Learning rate after the warm-up.", above=0)
    schedule: str = key(
        "linear",
        """The learning rate after the warm-up. "linear" or "cosine": down to 0 at the end of the run; "constant";
        "warmup_stable_decay": constant, and linear to 0 over the last decay_steps.""",
        one_of=SCHEDULES,
        example="cosine",
    )
    warmup_steps: int = key(0, "Steps in which the learning rate rises from 0.", at_least=0)
    decay_steps: int = key(
        0,
        "The last steps of the run, in which the learning rate falls to 0; 0: a tenth of those after the warm-up.",
        at_least=0,
        effective=When("optimizer.schedule", ("warmup_stable_decay",)),
    )
    layer_decay: float = key(
        0.0,
        """Learning rates by layer: that of layer l of L is multiplied by layer_decay^(L - l), of the embeddings by
        layer_decay^L; heads have the whole one. 0: all have.""",
        at_least=0,
        below=1,
        example=0.9,
    )
    weight_decay: float = key(0.0, "Decoupled weight decay, times the learning rate.", at_least=0, example=0.01)
    decayed: str = key(
        "matrices",
        """What weight decay acts on. "matrices": kernels and embedding tables; "kernels": without the tables; "all":
        also biases and norms.""",
        one_of=DECAYED,
        effective=When("optimizer.weight_decay"),
        example="kernels",
    )
    b1: float = key(0.9, "Decay of the mean of gradients.", at_least=0, below=1, effective=_ADAM_OR_LION)
    b2: float = key(
        0.999,
        "Decay of the mean of squared gradients; of Lion, of the mean that it keeps.",
        at_least=0,
        below=1,
        effective=_ADAM_OR_LION,
    )
    eps: float = key(
        1e-8,
        "Added to the root of the mean of squared gradients.",
        above=0,
        effective=When("optimizer.name", ("adamw", "muon")),
    )
    momentum: float = key(
        0.95,
        "Decay of the mean of gradients of Muon's matrices.",
        at_least=0,
        below=1,
        effective=When("optimizer.name", ("muon",)),
    )
    clip_norm: float = key(1.0, "Largest global norm of the gradient; 0: no clipping.", at_least=0)
