"""Plans: what is printed for the devices of this machine, and for TPUs that only their compiler knows."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from configs import base
from simcse_jax.config.resolve import resolve
from simcse_jax.planning.lengths import Lengths
from simcse_jax.planning.plan import (
    DoesNotFit,
    Planner,
    StepPlan,
    next_size,
    print_plan,
    product_flops,
    shapes,
)
from simcse_jax.planning.topologies import Chips, topology_chips
from simcse_jax.system.errors import UserError
from simcse_jax.training.mesh import make_mesh
from tests.small_models import SMALL_ENCODER, small_recipe

ROOT = Path(__file__).parent.parent.parent
VECTORS_MIB = (12 * (3 * 768 + 3072 + 6 * 768) + 3 * 768) * 4 / 2**20  # its biases and norms
BERT_BASE_MIB = 109_482_240 * 4 / 2**20  # its parameters as float32


def planner(
    tmp_path: Path, devices: int, memory: int = 2**30, lengths: Lengths | None = None, **changes: Any
) -> Planner:
    recipe = base.get_config()
    values = {
        **SMALL_ENCODER,
        "model.vocab_size": 400,
        "data.files": "demo:sentences",
        "data.cache_dir": str(tmp_path),
        "data.packed": False,
        "eval.data": "",
    }
    recipe.update_from_flattened_dict(values | {key.replace("__", "."): value for key, value in changes.items()})
    return Planner(resolve(recipe, (), devices), Chips(tuple(jax.devices()[:devices]), memory), lengths)


@pytest.mark.slow
def test_a_plan_says_what_the_step_needs_and_sends(tmp_path: Path) -> None:
    said: list[str] = []
    made = planner(tmp_path, 8, train__batch_size=512)
    print_plan(made.config, made.chips, said.append)
    text = "\n".join(said)
    assert "512 examples; each device has 64, as 1 group of 64; a group fills 64 rows of 32 tokens" in text
    assert "8 x cpu" in text
    assert "collective per device and step: 1 x all-gather, 0.03 MiB" in text  # 512 x 16 float32; parameters are small
    assert "1 x reduce-scatter" in text
    assert "largest batch that was compiled and fits" in text


SIZES: dict[str, Any] = {"model__unroll": "on", "model__hidden_size": 64, "model__intermediate_size": 256}
MASKED: dict[str, Any] = {"mlm__weight": 1.0, "model__pooler": "avg", "model__train_pooler": "avg"}
TRIPLETS: dict[str, Any] = {"data__files": "demo:triplets", "data__positive": "columns"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "64 anchors, encoded 2 times"),
        (MASKED | {"objective__loss": "none"}, "masked language modelling"),
        (MASKED, "masked language modelling"),
        (TRIPLETS, "64 anchors, encoded 1 time,"),
        (TRIPLETS | {"model__second_encoder": "copy"}, "64 + 128 rows"),
    ],
)
def test_arithmetic_is_that_of_the_compiled_step(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    """Unrolled layers and one block of the loss, so that the compiler's count misses no loop."""
    made = planner(tmp_path, 1, **SIZES, **changes)
    plan = made.compile(64)
    assert plan.work is not None
    assert 0.75 * plan.work.xla_flops < plan.flops < plan.work.xla_flops  # which counts more than products
    assert says in "\n".join(shapes(made))
    assert ("anchors" in "\n".join(shapes(made))) == (changes.get("objective__loss") != "none")


def test_arithmetic_counts_loops_and_what_one_device_does() -> None:
    mesh = make_mesh(4)

    def local(x: jax.Array) -> jax.Array:
        products = jax.lax.map(lambda row: row @ jnp.ones((5, 7)), x)  # 2 rows on each device
        return jax.checkpoint(lambda y: jnp.sin(y) @ jnp.ones((7, 3)))(products)

    step = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data")))
    assert product_flops(step.trace(jnp.ones((8, 5))).jaxpr.jaxpr) == 2 * 2 * 5 * 7 + 2 * 2 * 7 * 3


@pytest.mark.slow
def test_memory_and_the_largest_batch_follow_the_limit(tmp_path: Path) -> None:
    made = planner(tmp_path, 1)
    plan = made.compile(64)
    assert plan.memory["total"] > plan.memory["state"] > 3 * 4 * 400 * 16
    tried = list(made.largest(plan, 3 * plan.memory["total"]))
    best = max(size for size, fits in tried if fits)
    assert 128 <= best <= 256


def test_a_batch_that_does_not_fit_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = planner(tmp_path, 1, lengths=Lengths(32), train__batch_size=1024)

    def compiled(size: int, counts: bool) -> StepPlan:
        if size > 300:
            raise DoesNotFit("RESOURCE_EXHAUSTED: hbm")
        return StepPlan(size, {"total": size})

    monkeypatch.setattr(made, "compile", compiled)
    tried = dict(made.largest(None, 10**6))
    assert max(size for size, fits in tried.items() if fits) == 256


def test_the_next_size_is_where_memory_meets_the_limit() -> None:
    known = [StepPlan(size, {"total": 1000 + 2 * size}) for size in (64, 128)]
    assert next_size(known, 3000, 64, 128, 0) == 960  # 1,000 rounded down to a multiple of 64
    assert next_size(known, 3000, 64, 128, 512) == 320  # between what fits and what does not


def test_of_a_mixture_every_loss_of_a_source_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {
        "texts": {"files": "a.txt", "positive": "dropout"},
        "graded": {"files": "b.csv", "positive": "columns", "scores": "score", "loss": "cosent"},
    }
    recipe = small_recipe(sources, data__files="", data__mixing="batch", data__positive="dropout")
    made = object.__new__(Planner)
    made.config = resolve(recipe, (), 1)
    sizes, asked = {"info_nce": 5, "cosent": 7}, []

    def compiled(self: Planner, batch_size: int, counts: bool, loss: str) -> StepPlan:
        asked.append((batch_size, counts, loss))
        return StepPlan(batch_size, {"total": sizes[loss]}, loss=loss)

    monkeypatch.setattr(Planner, "_compile", compiled)
    found = made.compile(64)
    assert asked == [(64, True, "cosent"), (64, True, "info_nce")]
    assert (found.loss, [other.loss for other in found.others]) == ("cosent", ["info_nce"])


def test_a_topology_without_a_plan_or_that_nobody_knows(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simcse_jax.train", "--config=configs/demo.py", "--topology=v5e:2x4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, "Add --plan" in done.stderr) == (2, True)
    pytest.importorskip("libtpu")
    with pytest.raises(UserError, match="--topology=v9:1x1 is unknown"):
        topology_chips("v9:1x1")


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("recipe", "file", "topology", "batch", "chips"),
    [
        ("unsup", "wiki/wiki1m_for_simcse.part.txt", "v5e:2x4", 512, 8),
        ("unsup", "wiki/wiki1m_for_simcse.part.txt", "v5e:16x16", 8192, 256),
        ("sup", "nli/nli_triplets.csv", "v5e:2x4", 512, 8),
        ("sup", "nli/nli_triplets.csv", "v5e:16x16", 8192, 256),
    ],
)
def test_the_default_recipes_compile_for_tpus_that_are_not_there(
    tmp_path: Path, real_data: Path, recipe: str, file: str, topology: str, batch: int, chips: int
) -> None:
    pytest.importorskip("libtpu")
    flags = [
        f"--topology={topology}",
        f"--config.train.batch_size={batch}",
        "--config.model.init=random",
        "--config.model.name=",
        f"--config.model.tokenizer={real_data / 'vocab' / 'bert-base-uncased'}",
        f"--config.data.files={real_data / file}",
        f"--config.data.cache_dir={tmp_path}",
        "--config.eval.data=",
        "--search=False",
    ]
    command = [sys.executable, "-m", "simcse_jax.train", "--plan", f"--config=configs/{recipe}.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"devices: {chips} x TPU v5 lite" in done.stdout
    sent = {kind: float(size) for kind, size in re.findall(r"x ([a-z-]+), ([\d.,]+) MiB", done.stdout)}
    assert "loop" not in "".join(line for line in done.stdout.splitlines() if line.startswith("collective"))
    assert sent.keys() <= {"all-gather", "all-reduce", "reduce-scatter"}
    embeddings = (1 if recipe == "unsup" else 2) * batch * 768 * 4 / 2**20
    # Each gradient once, and the embeddings', as one of the two, whichever this compiler makes of it.
    once = sent["all-reduce"] + chips * sent.get("reduce-scatter", 0.0)
    assert BERT_BASE_MIB - 0.1 < once < BERT_BASE_MIB + embeddings + 0.1
    # On 8 chips each keeps an eighth of matrices and tables, on 256 its part would be too small to be moved.
    split = BERT_BASE_MIB - VECTORS_MIB if chips == 8 else 0.0
    assert sent["all-gather"] <= embeddings + split + 0.1
    assert sent["all-gather"] >= embeddings + split / 2 - 0.1  # what is multiplied in bfloat16 may be sent as such
