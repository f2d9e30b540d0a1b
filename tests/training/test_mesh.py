"""Arrays are split where they should be, become whole inside a step, and batches land where they belong."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from simcse_jax.data.batches import Batches, Layout
from simcse_jax.data.examples import ColumnExamples
from simcse_jax.training.feeding import feed, own_groups, place_batch
from simcse_jax.training.mesh import (
    AXES,
    gather_over_data,
    gather_over_fsdp,
    make_mesh,
    part_specs,
    place,
    state_shardings,
    used_axes,
)
from tests.training.test_topology import RandomExamples


@pytest.mark.parametrize(
    ("shape", "data", "fsdp", "expected"),
    [
        ((12, 768, 3, 12, 64), 8, 1, P(None, "data")),
        ((12, 768, 3, 12, 64), 4, 2, P(None, ("fsdp", "data"))),
        ((12, 3072, 768), 4, 2, P(None, ("fsdp", "data"))),
        ((12, 12, 64, 768), 8, 1, P(None, None, "data")),  # not along the last while another divides
        ((30522, 768), 8, 1, P(None, "data")),
        ((30522, 384), 8, 1, P()),  # parts of 48 are none of a TPU's tiles
        ((12, 24, 96), 8, 1, P()),  # nor are those of 3 or of 12
        ((12, 24, 96), 1, 8, P(None, "fsdp")),
        ((30522, 100), 4, 2, P(None, "fsdp")),  # 100 does not divide into 8 parts, but into 2
        ((30522, 99), 4, 2, P()),
        ((768, 30522), 1, 1, P()),
        ((12, 768), 1, 4, P(None, "fsdp")),
    ],
)
def test_matrices_are_split_along_an_axis_that_divides(shape: Any, data: int, fsdp: int, expected: P) -> None:
    array = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert part_specs(make_mesh(data, fsdp), {"layers": {"kernel": array}}) == {"layers": {"kernel": expected}}


def test_vectors_are_split_over_fsdp_alone_and_moments_like_their_parameters() -> None:
    params = {"dense": {"kernel": jnp.zeros((3, 64, 64)), "bias": jnp.zeros((3, 64))}}
    state = {"params": params, "mu": params, "step": jnp.zeros(())}
    specs = jax.tree.map(lambda sharding: sharding.spec, state_shardings(make_mesh(4, 2), state))
    assert specs["params"] == specs["mu"] == {"dense": {"kernel": P(None, ("fsdp", "data")), "bias": P(None, "fsdp")}}
    assert specs["step"] == P()


def gathered(data: int, fsdp: int, params: Any, kernels_as: Any = None) -> tuple[Any, Any, Any]:
    """(whole parameters as each device sees them, gradient of the sum over devices of n * sum(parameters), jaxpr).

    n = 1 for the first device, 257 for the others: no sum of it is exact in bfloat16.
    """
    mesh = make_mesh(data, fsdp)
    specs = part_specs(mesh, params)
    weights = jnp.array([1.0] + [257.0] * (mesh.size - 1), jnp.float32)

    def local(params: Any, weight: jax.Array) -> tuple[jax.Array, Any]:
        whole = gather_over_fsdp(gather_over_data(params, specs, used_axes(mesh), kernels_as), specs)
        total = sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(whole))
        return (total * weight[0])[None], jax.tree.map(lambda x: x[None], whole)

    spread = P(used_axes(mesh))
    everywhere = jax.shard_map(local, mesh=mesh, in_specs=(specs, spread), out_specs=(spread, spread))

    def loss(params: Any) -> tuple[jax.Array, Any]:
        values, whole = everywhere(params, weights)
        return values.sum(), whole

    graded = jax.value_and_grad(loss, has_aux=True)
    (_, whole), gradient = jax.jit(graded)(place(params, state_shardings(mesh, params)))
    return whole, gradient, jax.make_jaxpr(graded)(params)


def made() -> Any:
    rng = np.random.default_rng(0)
    shapes = {"kernel": (2, 64, 24), "bias": (2, 24), "table": (10, 256)}
    return {"dense": {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}}


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (4, 2), (1, 8)])
def test_parts_become_whole_on_each_device_and_gradients_are_summed_once(data: int, fsdp: int) -> None:
    params = made()
    whole, gradient, _ = gathered(data, fsdp, params)
    for name, x in params["dense"].items():
        np.testing.assert_array_equal(whole["dense"][name], np.broadcast_to(x, (8, *x.shape)))
        np.testing.assert_array_equal(gradient["dense"][name], np.full(x.shape, 1 + 7 * 257))


def test_kernels_are_sent_in_half_and_their_gradients_in_full() -> None:
    params = made()
    whole, gradient, jaxpr = gathered(8, 1, params, jnp.bfloat16)
    assert {name: x.dtype for name, x in whole["dense"].items()} == {
        "kernel": jnp.bfloat16,
        "bias": jnp.float32,
        "table": jnp.float32,
    }
    np.testing.assert_array_equal(whole["dense"]["kernel"][5], params["dense"]["kernel"].astype(jnp.bfloat16))
    # Each device's own is rounded (257 to 256), and their sum is not: in bfloat16, 1,793 would be 1,792.
    assert gradient["dense"]["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(gradient["dense"]["kernel"], np.full((2, 64, 24), 1 + 7 * 256))
    sent = [line.split(":")[1].split("[")[0] for line in str(jaxpr).splitlines() if " all_gather[" in line]
    summed = [line.split(":")[1].split("[")[0] for line in str(jaxpr).splitlines() if " reduce_scatter[" in line]
    assert (sorted(sent), summed) == (["bf16", "f32"], ["f32", "f32"])  # kernel and table


LAYOUT = Layout(batch_size=32, group_size=2, row_length=32)


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (8, 1), (4, 2)])
def test_what_is_fed_is_the_batch(data: int, fsdp: int) -> None:
    mesh, batches = make_mesh(data, fsdp), Batches(ColumnExamples(RandomExamples(3)), LAYOUT, seed=3)
    assert own_groups(mesh, 16) == list(range(16))
    fed = list(feed(batches, mesh, 2, 5))
    assert len(fed) == 3
    for step, batch in enumerate(fed, 2):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(batch), batches(step))
        assert batch.inputs.groups.ids.sharding.spec[0] == AXES
        assert batch.inputs.groups.ids.sharding.shard_shape(batch.inputs.groups.ids.shape)[0] == 16 // (data * fsdp)


def test_a_process_makes_no_more_than_its_groups() -> None:
    examples = RandomExamples(1)
    asked: list[int] = []
    token_ids = examples.token_ids
    examples.token_ids = lambda rows: asked.extend(rows) or token_ids(rows)
    batches = Batches(ColumnExamples(examples), LAYOUT, seed=3)
    part, whole = batches(1, [3, 4, 9]), batches(1)
    assert asked[:6] == [*batches.example_ids(1)[6:10], *batches.example_ids(1)[18:20]]
    jax.tree.map(
        lambda some, every: np.testing.assert_array_equal(some, every[[3, 4, 9]]),
        part.inputs.groups,
        whole.inputs.groups,
    )
    np.testing.assert_array_equal(part.text_ids, whole.text_ids)


def test_a_process_places_its_own_groups_on_its_own_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the second of two processes, each with half of the devices; the other's make no groups here."""
    mesh, batches = make_mesh(4, 2), Batches(ColumnExamples(RandomExamples(1)), LAYOUT, seed=3)
    theirs = set(mesh.devices.flat[:4])
    real = NamedSharding.addressable_devices_indices_map
    monkeypatch.setattr(
        NamedSharding,
        "addressable_devices_indices_map",
        lambda self, shape: {d: span for d, span in real(self, shape).items() if d not in theirs},
    )

    def place(shape: Any, sharding: Any, part: Any) -> np.ndarray:
        if sharding.is_fully_replicated:
            return part((slice(None),) * len(shape))
        return np.concatenate([part(span) for device, span in real(sharding, shape).items() if device not in theirs])

    monkeypatch.setattr(jax, "make_array_from_callback", place)
    own = own_groups(mesh, 16)
    assert own == list(range(8, 16))
    result = place_batch(batches(0, own), own, 16, mesh)
    np.testing.assert_array_equal(result.inputs.groups.ids, batches(0).inputs.groups.ids[8:])
