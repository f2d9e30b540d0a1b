"""What the compiled step sends between 8 devices, keeps, and compiles."""

import functools
from typing import Any

import jax
import pytest

from configs import base
from simcse_jax.config import resolve
from simcse_jax.encoder.bert import Encoder
from simcse_jax.encoder.config import EncoderConfig
from simcse_jax.training.collectives import Collective, collectives
from simcse_jax.training.mesh import make_mesh
from simcse_jax.training.program import batch_shapes, make_program

WIDTH, BATCH = 64, 1024
METRICS = 7 * 4  # bytes: the loss and six sums
CONFIG = EncoderConfig("bert", 1000, WIDTH, 3, 4, 128, max_position_embeddings=64)


@functools.cache
def compiled(fsdp: int, groups_at_once: int) -> tuple[list[Collective], int, int]:
    """Collectives of the step, bytes of its parameters, and bytes of a device's arguments."""
    recipe = base.get_config()
    changes: dict[str, Any] = {"data.files": "none", "train.batch_size": BATCH, "mesh.fsdp": fsdp}
    recipe.update_from_flattened_dict(changes | {"train.groups_at_once": groups_at_once})
    config = resolve(recipe, (), 8)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    program = make_program(config, Encoder(CONFIG, has_head=True), mesh, views=2, total_steps=10)
    step: Any = program.train_step
    made = step.lower(program.shapes, batch_shapes(config, mesh, 1, 23, 64)).compile()
    parameters = sum(x.size for x in jax.tree.leaves(program.shapes.params)) * 4
    return collectives(made.as_text()), parameters, made.memory_analysis().argument_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("groups_at_once", [0, 1])
def test_embeddings_are_gathered_and_scattered_once_and_gradients_reduced_once(groups_at_once: int) -> None:
    sent, parameters, _ = compiled(1, groups_at_once)
    assert not [one for one in sent if one.in_loop]
    of_kind = {kind: [one for one in sent if one.kind == kind] for kind in {one.kind for one in sent}}
    assert of_kind.keys() == {"all-gather", "reduce-scatter", "all-reduce"}
    assert [one.bytes for one in of_kind["all-gather"]] == [BATCH * WIDTH * 4]
    assert [one.bytes for one in of_kind["reduce-scatter"]] == [BATCH // 8 * WIDTH * 4]
    unused = WIDTH * 4  # the token type that no sentence has gets no gradient
    assert sum(one.bytes for one in of_kind["all-reduce"]) in (parameters + METRICS, parameters + METRICS - unused)


@pytest.mark.slow
def test_fsdp_gathers_a_layer_at_a_time_and_never_activations() -> None:
    sent, parameters, arguments = compiled(2, 0)
    layer = sum(x.size for x in jax.tree.leaves(compiled_shapes()["layers"])) * 4 // CONFIG.num_hidden_layers
    assert {one.kind for one in sent} == {"all-gather", "reduce-scatter", "all-reduce"}
    in_loop = [one for one in sent if one.in_loop]
    # A gather in the forward pass and one in the backward pass; what is scattered is the half that stays.
    assert 1.9 * layer < sum(one.bytes for one in in_loop if one.kind == "all-gather") <= 2 * layer
    assert 0.45 * layer < sum(one.bytes for one in in_loop if one.kind == "reduce-scatter") <= layer // 2
    assert all(one.times == CONFIG.num_hidden_layers for one in in_loop)
    reduced = sum(one.bytes for one in sent if one.kind == "all-reduce" and one.bytes > METRICS * 30)
    assert reduced <= parameters / 2 * 1.01
    # Parameters and both moments are halved; the batch is the same.
    whole = compiled(1, 0)[2]
    assert whole - arguments == pytest.approx(3 * parameters / 2, rel=0.02)


def compiled_shapes() -> Any:
    from simcse_jax.encoder.init import parameter_shapes

    return parameter_shapes(Encoder(CONFIG, has_head=True))
