"""State the keys of a run: how long it is, when it is judged and saved, which devices it has."""

from __future__ import annotations

import dataclasses

from simcse_jax.config.keys import When, key

DURATIONS = ("steps", "epochs", "examples")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Keys of the run. Exactly one of steps, epochs and examples is above 0."""

    batch_size: int = key(64, "Examples of a step, over all devices.", at_least=2)
    steps: int = key(
        0,
        """Length of the run in steps. Exactly one of train.steps, train.epochs and train.examples is above 0; one given
        on the command line replaces the recipe's.""",
        at_least=0,
        example=1,
    )
    epochs: float = key(1.0, "Length of the run in passes over the data.", at_least=0)
    examples: int = key(0, "Length of the run in examples.", at_least=0, example=1)
    seed: int = key(0, "Seed of everything random.", at_least=0)
    groups_at_once: int = key(
        0,
        "Groups that a device encodes at a time, activations recomputed (GradCache); 0: all at once.",
        at_least=0,
        layout=True,
    )
    log_every_steps: int = key(10, "Steps between two lines of the log.", at_least=1, layout=True)
    trackers: str = key(
        "",
        """Comma-separated trackers that get recipe, metrics, dev scores and report too: "wandb", "mlflow", "trackio".
        Each is a package of its own, and finds its server by its own variables (docs/scale.md).""",
        layout=True,
        example="wandb",
    )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the steps of the whole run: whole batches only, at least one."""
        if self.steps:
            return self.steps
        steps = self.examples / self.batch_size if self.examples else self.epochs * steps_per_epoch
        return max(int(steps + 1e-6), 1)  # 0.29 x 100 is 28.999...


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Keys of the evaluation while training."""

    data: str = key(
        "hf://datasets/princeton-nlp/datasets-for-simcse/senteval.tar",
        """Graded pairs: a .tsv or .csv of score, sentence, sentence; SentEval's sts-dev.csv or its folder; or the
        senteval archive of the Hub. Or KIND:SOURCE, a task that evaluate takes as --KIND=SOURCE: retrieval:DIR. Or
        function:MODULE:NAME, a function of your own. Or heldout:500: that many documents (rows, where there are none)
        of data.files, which are then not trained on. "": no evaluation, and the last checkpoint is the best.""",
        resumable=True,
        local=True,
    )
    measure: str = key(
        "",
        """The value of eval.data's task that chooses the best checkpoint and counts for patience: spearman or pearson
        of pairs; ndcg@10, mrr@10, recall@10, ... of retrieval. "": the first of its kind.""",
        effective=When("eval.data"),
        example="ndcg@10",
    )
    every_steps: int = key(125, "Steps between two evaluations.", at_least=1, resumable=True)
    patience: int = key(
        0, "Stop after this many evaluations without a better score; 0: never.", at_least=0, resumable=True
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Keys of checkpoints."""

    every_steps: int = key(500, "Steps between two checkpoints.", at_least=1, layout=True)
    keep: int = key(
        2,
        "The newest states that checkpoints/last keeps; a damaged one has another before it.",
        at_least=2,
        layout=True,
    )
    keep_every_steps: int = key(
        0,
        """Also save the state every so many steps, and keep it for good, to go on from it in another folder
        (--resume_from). 0: none.""",
        at_least=0,
        layout=True,
        example=1000,
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Keys of the device mesh, data x fsdp devices. Both axes split parameters and optimizer state."""

    data: int = key(
        -1,
        "Devices along the axis data; -1: all visible devices, divided by mesh.fsdp.",
        at_least=1,
        also=(-1,),
        layout=True,
    )
    fsdp: int = key(
        1,
        "Devices along the axis fsdp. Above 1, parameters are whole on no device: a layer is gathered when it runs.",
        at_least=1,
        layout=True,
    )

    @property
    def devices(self) -> int:
        """Return the number of devices."""
        return self.data * self.fsdp
