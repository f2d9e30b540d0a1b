"""What the compiled step sends between 8 devices, keeps, and compiles."""

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from configs import base
from simcse_jax.config.resolve import resolve
from simcse_jax.data.batches import Batch
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.encoder.model import Encoder
from simcse_jax.planning.collectives import Collective, collectives
from simcse_jax.training import program as program_module
from simcse_jax.training.feeding import batch_shapes
from simcse_jax.training.mesh import make_mesh, part_specs
from simcse_jax.training.model import unrolls
from simcse_jax.training.program import Compilations, Program, make_program

WIDTH, BATCH = 256, 1024
METRICS = 7 * 4  # bytes: the loss and six sums
CONFIG = Architecture("bert", 1000, WIDTH, 3, 4, 512, max_position_embeddings=64)


def made(fsdp: int, groups_at_once: int, dtype: str = "float32") -> tuple[Program, Batch]:
    """Return the program of a run on 8 devices, and the shapes of a batch."""
    recipe = base.get_config()
    changes: dict[str, Any] = {"data.files": "none", "train.batch_size": BATCH, "mesh.fsdp": fsdp, "model.dtype": dtype}
    recipe.update_from_flattened_dict(changes | {"train.groups_at_once": groups_at_once})
    config = resolve(recipe, (), 8)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    program = make_program(config, Encoder(CONFIG, jnp.dtype(dtype), has_head=True), mesh, views=2, total_steps=10)
    return program, batch_shapes(config, mesh, 1, (23,), 64)


@functools.cache
def compiled(fsdp: int, groups_at_once: int) -> tuple[list[Collective], int]:
    """Return the collectives of the step, and the bytes of a device's arguments."""
    program, batch = made(fsdp, groups_at_once)
    step: Any = program.train_step
    found = step.lower(program.shapes, batch).compile()
    return collectives(found.as_text()), found.memory_analysis().argument_size_in_bytes


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yield every equation of a jaxpr and of the jaxprs within it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize(("fsdp", "groups_at_once"), [(1, 0), (1, 1), (2, 0), (8, 0)])
def test_gradients_are_summed_in_full_whatever_the_encoder_computes_in(fsdp: int, groups_at_once: int) -> None:
    program, batch = made(fsdp, groups_at_once, "bfloat16")
    traced = jax.make_jaxpr(program.train_step)(program.shapes, batch)
    found = list(equations(traced.jaxpr))
    summed = {
        x.aval.dtype for one in found if one.primitive.name.startswith(("reduce_scatter", "psum")) for x in one.invars
    }
    assert jnp.dtype(jnp.float32) in summed
    assert jnp.dtype(jnp.bfloat16) not in summed
    sent = {x.aval.dtype for one in found if one.primitive.name.startswith("all_gather") for x in one.invars}
    # The negative case: alone over `data`, kernels are gathered in half.
    assert (jnp.dtype(jnp.bfloat16) in sent) == (fsdp == 1 and not groups_at_once)


PARAMETERS = parameter_shapes(Encoder(CONFIG, has_head=True))


def size(params: Any, split_over: int = 0) -> int:
    """Return the bytes of the parameters, or of those split over `data` on a mesh of so many x 1 devices."""
    specs = part_specs(make_mesh(split_over or 1), params)
    return sum(
        4 * x.size
        for x, spec in zip(jax.tree.leaves(params), jax.tree.leaves(specs), strict=True)
        if not split_over or "data" in spec
    )


@pytest.mark.slow
@pytest.mark.parametrize("groups_at_once", [0, 1])
def test_embeddings_and_parameters_are_gathered_once_and_gradients_scattered_once(groups_at_once: int) -> None:
    sent, _ = compiled(1, groups_at_once)
    assert all(one.times == 1 for one in sent)
    total = {kind: sum(one.bytes for one in sent if one.kind == kind) for kind in {one.kind for one in sent}}
    split, embeddings = size(PARAMETERS, 8), BATCH * WIDTH * 4
    assert split > 0.95 * size(PARAMETERS)
    unused = WIDTH * 4  # the token type that no sentence has gets no gradient, and is not read
    assert total.keys() == {"all-gather", "reduce-scatter", "all-reduce"}
    assert split + embeddings - total["all-gather"] in (0, unused)
    assert (split + embeddings) // 8 - total["reduce-scatter"] in (0, unused // 8)
    # Bytes: of each of eight arrays that are split, sums over its parts, for clipping and for the norms in the log.
    norms = 3 * 4 * 8
    assert 0 <= total["all-reduce"] - (size(PARAMETERS) - split + METRICS) <= norms


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 2])
def test_a_device_keeps_its_part_of_parameters_and_moments(fsdp: int) -> None:
    split = size(PARAMETERS, 8)
    vectors = (size(PARAMETERS) - split) / fsdp
    batch = 4 * (2 * 4 * 23 * 64 + 2 * 2 * 64) + 4 * 2 * BATCH  # groups' tokens and sentences, and text numbers
    assert compiled(fsdp, 0)[1] == pytest.approx(3 * (split / 8 + vectors) + batch, rel=0.02)


@pytest.mark.parametrize(
    ("platform", "changes", "expected"),
    [
        ("cpu", {}, True),
        ("gpu", {}, True),
        ("tpu", {}, False),
        ("cpu", {"mesh.fsdp": 2}, True),
        ("gpu", {"mesh.fsdp": 2}, False),
        ("gpu", {"model.remat": True}, False),
        ("tpu", {"model.unroll": "on"}, True),
        ("gpu", {"model.unroll": "off"}, False),
    ],
)
def test_layers_are_straight_line_code_where_that_moves_fewer_bytes(
    platform: str, changes: dict[str, Any], expected: bool
) -> None:
    recipe = base.get_config()
    recipe.update_from_flattened_dict({"data.files": "none"} | changes)
    assert unrolls(resolve(recipe, (), 8), platform) is expected


def test_a_teacher_compares_the_last_of_several_layers() -> None:
    recipe = base.get_config()
    changes: dict[str, Any] = {"data.files": "none", "model.pooler": "avg", "model.train_pooler": "avg"}
    recipe.update_from_flattened_dict(changes | {"objective.layers": "3,1", "teacher.name": "any", "teacher.mse": 1.0})
    config, mesh = resolve(recipe, (), 1), make_mesh(1)
    program = make_program(config, Encoder(CONFIG), mesh, views=2, total_steps=10, teacher_width=WIDTH)
    batch = batch_shapes(config, mesh, 1, (23,), 64, WIDTH)
    _, metrics = jax.eval_shape(program.train_step, program.shapes, batch)  # vectors of two layers would not fit
    assert {"loss_layer_1", "loss_layer_3"} <= metrics.keys()


def test_freed_memory_is_returned_before_and_after_a_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the memory of the steps before and that of the compiler would add up."""
    happened: list[str] = []
    monkeypatch.setattr(program_module, "release_freed_memory", lambda: happened.append("release"))
    lowered = SimpleNamespace(compile=lambda: happened.append("compile"))
    made: Any = SimpleNamespace(lower=lambda *_: lowered, step_of=lambda _: made, shapes=None, frozen=())
    compilations = Compilations(made, made.lower)
    compilations.step((1,))
    compilations.close()
    assert happened == ["release", "compile", "release"]
