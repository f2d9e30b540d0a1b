"""Plans: what is printed for the devices of this machine, and for TPUs that only their compiler knows."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from configs import base
from simcse_jax.config.resolve import resolve
from simcse_jax.system.errors import UserError
from simcse_jax.training.plan import Chips, DoesNotFit, Planner, StepPlan, _next, print_plan, shapes, topology_chips
from tests.small_models import SMALL_ENCODER

ROOT = Path(__file__).parent.parent.parent
VECTORS_MIB = (12 * (3 * 768 + 3072 + 6 * 768) + 3 * 768) * 4 / 2**20  # its biases and norms
BERT_BASE_MIB = 109_482_240 * 4 / 2**20  # its parameters as float32


def planner(tmp_path: Path, devices: int, memory: int = 2**30, **changes: Any) -> Planner:
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
    return Planner(resolve(recipe, (), devices), Chips(tuple(jax.devices()[:devices]), memory))


@pytest.mark.slow
def test_a_plan_says_what_the_step_needs_and_sends(tmp_path: Path) -> None:
    said: list[str] = []
    made = planner(tmp_path, 8, train__batch_size=512)
    print_plan(made.config, made.chips, said.append)
    text = "\n".join(said)
    assert (
        "512 examples, 64 on each device: 1 groups of 64, 1 at once, in 64 rows of 32 tokens, encoded 2 times" in text
    )
    assert "8 x cpu" in text
    assert "collective per device and step: 1 x all-gather, 0.03 MiB" in text  # 512 x 16 float32; parameters are small
    assert "1 x reduce-scatter" in text
    assert "largest batch that was compiled and fits" in text


@pytest.mark.slow
def test_arithmetic_is_that_of_the_compiled_step(tmp_path: Path) -> None:
    """Unrolled layers and one block of the loss, so that the compiler's count misses no loop."""
    made = planner(tmp_path, 1, model__unroll="on", model__hidden_size=64, model__intermediate_size=256)
    plan = made.compile(64)
    assert plan.flops == pytest.approx(plan.xla_flops, rel=0.25)  # which counts more than products
    assert made.compile(128).flops == pytest.approx(2 * plan.flops, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["none", "info_nce"])
def test_arithmetic_of_masked_language_modelling(tmp_path: Path, loss: str) -> None:
    sizes: Any = {"model__unroll": "on", "model__hidden_size": 64, "model__intermediate_size": 256}
    poolers: Any = {"model__pooler": "avg", "model__train_pooler": "avg"}
    made = planner(tmp_path, 1, objective__loss=loss, mlm__weight=1.0, **sizes, **poolers)
    plan = made.compile(64)
    assert plan.flops == pytest.approx(plan.xla_flops, rel=0.25)
    said = "\n".join(shapes(made.config, made.encoder, made.batches, made.rows, made.views))
    assert ("masked language modelling alone" in said) == (loss == "none")
    assert ("encoded 2 times and masked once" in said) == (loss != "none")
    assert "encoded 0" not in said


@pytest.mark.slow
def test_two_encoders_of_triplets_take_no_more_arithmetic_than_one(tmp_path: Path) -> None:
    sizes: Any = {"model__unroll": "on", "model__hidden_size": 64, "model__intermediate_size": 256}
    pairs: Any = {"data__files": "demo:triplets", "data__positive": "columns"}
    one, two = (planner(tmp_path, 1, **sizes, **pairs, model__second_encoder=second) for second in ("none", "copy"))
    plans = [made.compile(64) for made in (one, two)]
    assert plans[1].flops == plans[0].flops
    assert plans[1].xla_flops == pytest.approx(plans[0].xla_flops, rel=0.02)
    assert plans[1].flops == pytest.approx(plans[1].xla_flops, rel=0.25)
    assert "in 64 + 128 rows" in "\n".join(shapes(two.config, two.encoder, two.batches, two.rows, two.views))


@pytest.mark.slow
def test_memory_and_the_largest_batch_follow_the_limit(tmp_path: Path) -> None:
    made = planner(tmp_path, 1)
    plan = made.compile(64)
    assert plan.memory["total"] > plan.memory["state"] > 3 * 4 * 400 * 16
    tried = list(made.largest(plan, 3 * plan.memory["total"]))
    best = max(size for size, fits in tried if fits)
    assert 128 <= best <= 256


@pytest.mark.medium
def test_a_batch_that_does_not_fit_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = planner(tmp_path, 1, train__batch_size=1024)

    def compiled(size: int) -> StepPlan:
        if size > 300:
            raise DoesNotFit("RESOURCE_EXHAUSTED: hbm")
        return StepPlan(size, {"total": size}, 0, 0.0, ())

    monkeypatch.setattr(made, "compile", compiled)
    tried = dict(made.largest(None, 10**6))
    assert max(size for size, fits in tried.items() if fits) == 256


def test_the_next_size_is_where_memory_meets_the_limit() -> None:
    known = [StepPlan(size, {"total": 1000 + 2 * size}, 0, 0.0, ()) for size in (64, 128)]
    assert _next(known, 3000, 64, 128, 0) == 960  # 1,000 rounded down to a multiple of 64
    assert _next(known, 3000, 64, 128, 512) == 320  # between what fits and what does not


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
