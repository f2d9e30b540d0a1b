"""Each process makes the groups that its devices hold; here one process holds all, and parts are asked for by hand."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from simcse_jax.data.batches import Batches, Layout
from simcse_jax.data.examples import AsTheyAre
from simcse_jax.training.feeding import feed, own_groups, place_batch
from simcse_jax.training.mesh import AXES, make_mesh
from tests.training.test_topology import RandomExamples

LAYOUT = Layout(batch_size=32, group_size=2, row_length=32)


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (8, 1), (4, 2)])
def test_what_is_fed_is_the_batch(data: int, fsdp: int) -> None:
    mesh, batches = make_mesh(data, fsdp), Batches(AsTheyAre(RandomExamples(3)), LAYOUT, seed=3)
    assert own_groups(mesh, 16) == list(range(16))
    fed = list(feed(batches, mesh, 2, 5))
    assert len(fed) == 3
    for step, batch in enumerate(fed, 2):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(batch), batches(step))
        assert batch.groups.ids.sharding.spec[0] == AXES
        assert batch.groups.ids.sharding.shard_shape(batch.groups.ids.shape)[0] == 16 // (data * fsdp)


def test_a_process_makes_no_more_than_its_groups() -> None:
    examples = RandomExamples(1)
    asked: list[int] = []
    token_ids = examples.token_ids
    examples.token_ids = lambda rows: asked.extend(rows) or token_ids(rows)
    batches = Batches(AsTheyAre(examples), LAYOUT, seed=3)
    part, whole = batches(1, [3, 4, 9]), batches(1)
    assert asked[:6] == [*batches.rows(1)[6:10], *batches.rows(1)[18:20]]
    jax.tree.map(lambda some, every: np.testing.assert_array_equal(some, every[[3, 4, 9]]), part.groups, whole.groups)
    np.testing.assert_array_equal(part.texts, whole.texts)


def test_a_process_places_its_own_groups_on_its_own_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the second of two processes, each with half of the devices; the other's make no groups here."""
    mesh, batches = make_mesh(4, 2), Batches(AsTheyAre(RandomExamples(1)), LAYOUT, seed=3)
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
    np.testing.assert_array_equal(result.groups.ids, batches(0).groups.ids[8:])


def test_placing_puts_each_group_where_it_belongs() -> None:
    mesh, batches = make_mesh(4, 2), Batches(AsTheyAre(RandomExamples(1)), LAYOUT, seed=3)
    result = place_batch(batches(0), list(range(16)), 16, mesh)
    for shard in result.groups.ids.addressable_shards:
        np.testing.assert_array_equal(shard.data, batches(0).groups.ids[shard.index[0]])
