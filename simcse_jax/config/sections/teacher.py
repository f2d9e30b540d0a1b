"""State the keys of distillation."""

from __future__ import annotations

import dataclasses

from simcse_jax.config.keys import When, key
from simcse_jax.encoder.architecture import PRODUCTS
from simcse_jax.objective.distillation import DISTILLATIONS

TEACHER = When("teacher.name")


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Keys of distillation: whose vectors the encoder learns, and by which losses."""

    name: str = key(
        "",
        """Where the vectors that the encoder learns come from: a model (run folder, model folder or Hub name), which
        encodes each text of the data once, into the cache; or .parquet files that `embed` wrote from these texts,
        comma-separated. "": no teacher. Where a run resumes, the vectors must be of the same model or file.""",
        resumable=True,
        local=True,
        example="sentence-transformers/all-MiniLM-L6-v2",
    )
    width: int = key(
        0,
        """Reduce the teacher's vectors to so many features, their first axes of a singular value decomposition: to the
        encoder's width, so that mse needs no projection. 0: all.""",
        at_least=0,
        effective=TEACHER,
        example=256,
    )
    mse: float = key(
        0.0,
        """Weight of the squared distance between an embedding and its teacher's vector, both of length 1; where widths
        differ, a learned projection comes between, which is not exported. 0: none.""",
        at_least=0,
        effective=TEACHER,
        example=1.0,
    )
    kl: float = key(
        0.0,
        """Weight of the divergence between the teacher's softmax of a text's similarities with the other texts of the
        batch, and the encoder's. 0: none.""",
        at_least=0,
        effective=TEACHER,
        example=1.0,
    )
    temperature: float = key(
        0.05, "The teacher's similarities are divided by it.", above=0, effective=When("teacher.kl")
    )
    student_temperature: float = key(
        0.0,
        "The encoder's similarities are divided by it; 0: as the teacher's.",
        at_least=0,
        effective=When("teacher.kl"),
        example=0.05,
    )
    products: str = key(
        "float32",
        """Factors of the teacher's matrix products, as model.products says of the encoder's.""",
        one_of=PRODUCTS,
        effective=TEACHER,
    )
    margin_mse: float = key(
        0.0,
        """Weight of the squared difference between the encoder's margin, cosine of the positive less cosine of a
        negative, and the teacher's; hard negatives where the data has them, else those of the batch. 0: none.""",
        at_least=0,
        effective=TEACHER,
        example=1.0,
    )

    @property
    def weights(self) -> dict[str, float]:
        """Return the weight of each loss that is used, by its name."""
        return {name: getattr(self, name) for name in DISTILLATIONS if getattr(self, name)}
