"""What the roofline measures of a compiled step, beside formulas, and its breakdown."""

import json

import pytest

from benchmarks import roofline
from benchmarks.scaling_model import UNSUPERVISED, Model, encoder_flops, loss_flops
from benchmarks.sizes import ENCODERS
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.planning.hlo_costs import Part, parts
from simcse_jax.planning.topologies import topology_chips
from simcse_jax.training.mesh import make_mesh
from tests.planning.made_step import TEXT


def test_the_breakdown_sums_to_all() -> None:
    found = parts(TEXT, chip_memory=True)
    lines = "\n".join(roofline.breakdown(found, 2)).splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2:5] for line in lines if line}
    assert cells["all"][2].strip() == "100.0%"
    assert sum(float(cells[group][2].strip(" %")) for group in roofline.GROUPS) == pytest.approx(100, abs=0.5)
    assert lines[-2].startswith("| 0.000 | 0.000 | 3 | ffn | f |")
    unknown = Part("x", "add", "", "f32[]", "other", None, 0, 0, 4, 4)
    assert "| ? | other | x |" in "\n".join(roofline.breakdown([unknown], 1))


TINY = Architecture("bert", 1000, 64, 2, 2, 128, max_position_embeddings=64)
TINY_MODEL = Model(2, 64, 128, 1000, 64)


@pytest.mark.slow
def test_the_step_on_a_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products as the scaling model counts them from shapes; of the loss's four, XLA makes two one here."""
    monkeypatch.setitem(ENCODERS, "tiny", TINY)
    case, found = roofline.measure(make_mesh(1), (), "tiny", "float32", 64, {"model.unroll": "off"})
    loss = loss_flops(TINY_MODEL, UNSUPERVISED, 64, 64)
    assert case["work"]["flops"] == encoder_flops(TINY_MODEL, UNSUPERVISED, 64, 1) + loss * 3 / 4
    assert case["work"]["accessed_once"] == pytest.approx(case["work"]["xla_accessed"], rel=0.05)
    assert (case["bound"], case["work"]["sent"], case["work"]["unknown_loops"]) == (None, [], 0)
    assert {part.group for part in found} >= {"embeddings", "attention", "ffn", "norm", "head", "loss", "optimizer"}
    assert roofline.row(case).count("|") == roofline.HEADER.splitlines()[0].count("|")
    json.dumps(case)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_step_for_chips_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("libtpu")
    monkeypatch.setitem(ENCODERS, "tiny", TINY)
    chips = topology_chips("v5e:2x2").devices
    case, found = roofline.measure(make_mesh(4, devices=chips), (2, 2), "tiny", "bfloat16", 256, {})
    done, model = case["work"], TINY_MODEL
    assert done["flops"] == encoder_flops(model, UNSUPERVISED, 64, 1) + loss_flops(model, UNSUPERVISED, 64, 256)
    assert done["exact_flops"] == loss_flops(model, UNSUPERVISED, 64, 256)
    assert done["unknown_loops"] == 0
    assert 0 < done["hbm"] < done["accessed"]
    assert done["hbm"] == sum(part.hbm * part.runs for part in found)
    # Each gradient once: reduced as a whole, or scattered into the parts of 4 chips; and the embeddings'.
    times = {"all-reduce": 1, "reduce-scatter": 4}
    once = sum(one["bytes"] * times.get(one["kind"], 0) for one in done["sent"])
    embeddings = 256 * model.width * 4
    assert 4 * model.parameters <= once <= 4 * model.parameters + embeddings + 1024
    assert case["bound"]["sentences"] == 256 / case["bound"]["seconds"]
