"""The scaling model: its formulae against published totals and limits, its bytes against a compiled step."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import scaling
from benchmarks.scaling_model import (
    MODELS,
    SUPERVISED,
    UNSUPERVISED,
    Model,
    encoder_flops,
    fill,
    gradients_sent,
    loss_flops,
    step,
)
from benchmarks.sizes import ENCODERS
from simcse_jax.config.schema import OptimizerConfig
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.encoder.model import Encoder
from simcse_jax.planning.chips import CHIPS, Assumed, fast_links, gathered, torus_shape
from simcse_jax.planning.collectives import Collective, collectives
from simcse_jax.training.mesh import AXES, part_specs, state_shardings
from simcse_jax.training.optimizer import make_optimizer
from simcse_jax.training.state import init_state
from simcse_jax.training.step import compile_train_step, make_train_step
from tests.training.test_topology import BATCH, CONFIG, Case, Kind, build

ROOT = Path(__file__).parent.parent
BASE, ASSUMED = MODELS["bert-base"], Assumed()


@pytest.mark.parametrize(
    ("name", "published"),
    [("bert-base", 109_482_240), ("bert-large", 335_141_888), ("roberta-base", 124_645_632)],
)
def test_parameters_are_the_published_ones(name: str, published: int) -> None:
    assert MODELS[name].parameters == published


def test_flops_of_a_step() -> None:
    """Six a parameter and position; attention adds 1.6 % at rows of 64; the loss grows with the square of the batch."""
    assert BASE.matrices == 84_934_656
    positions = 128 * 21.9 / fill(1)
    rest = encoder_flops(BASE, UNSUPERVISED, 64, 1) - 6 * BASE.matrices * positions
    assert rest == pytest.approx(14 * 12 * 768 * 64 * positions + 6 * 768**2 * 128)
    assert rest / (6 * BASE.matrices * positions) == pytest.approx(0.0165, abs=5e-4)
    assert loss_flops(BASE, UNSUPERVISED, 64, 64) == 8 * 64 * 64 * 768
    assert loss_flops(BASE, SUPERVISED, 8, 512) == 2 * 8 * 8 * 512 * 768
    assert loss_flops(BASE, UNSUPERVISED, 128, 256) == 4 * loss_flops(BASE, UNSUPERVISED, 64, 128)
    chunked = dataclasses.replace(UNSUPERVISED, chunks=4)
    # All but the scores that the backward pass makes again is made a third more often.
    plain, again = encoder_flops(BASE, UNSUPERVISED, 64, 1), 2 * 12 * 768 * 64 * positions
    assert encoder_flops(BASE, chunked, 64, 1) == pytest.approx(plain + (plain - again) / 3)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("chips", [1, 8, 64, 4096])
def test_bytes_over_both_networks_are_those_of_one_ring(chip: scaling.Chip, chips: int) -> None:
    """Hierarchical or not, a gather sends (n - 1) / n of the result in all; the outer network's part shrinks."""
    sent = gathered(chip, chips, 1e9, ASSUMED)
    assert sent.inner + sent.outer == pytest.approx(1e9 * (chips - 1) / chips)
    assert (sent.outer > 0) == (chips > chip.inner_size)
    assert sent.outer <= 1e9 / chip.inner_size
    reduced = gradients_sent(chip, chips, BASE, UNSUPERVISED, ASSUMED)
    assert reduced.inner + reduced.outer == pytest.approx(2 * 4 * BASE.parameters * (chips - 1) / chips)
    assert reduced.seconds >= 2 * 4 * BASE.parameters * (chips - 1) / chips / (chip.inner + chip.outer)


def test_links_of_a_torus() -> None:
    """A slice of v5e: 16 closes to a ring and sends both ways; a line's last chip has one link an axis."""
    chip = CHIPS["v5e"]
    assert [torus_shape(n) for n in (2, 8, 16, 128, 256)] == [(1, 2), (2, 4), (4, 4), (8, 16), (16, 16)]
    assert fast_links(chip, 2) == (50e9, 1)
    assert fast_links(chip, 8) == (100e9, 4)
    assert fast_links(chip, 128) == (150e9, 15)
    assert fast_links(chip, 256) == (200e9, 16)
    assert fast_links(CHIPS["h100"], 8) == (450e9, 7)


@pytest.mark.parametrize("name", ["bert-base", "bert-large"])
@pytest.mark.parametrize("chips", [8, 16, 256])
def test_what_is_split_is_what_the_mesh_splits(name: str, chips: int) -> None:
    params = parameter_shapes(Encoder(ENCODERS[name], has_head=True))
    mesh: Any = jax.sharding.AbstractMesh((chips, 1), AXES)
    sizes = {True: 0, False: 0}
    for (path, x), spec in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(part_specs(mesh, params)), strict=True
    ):
        sizes[path[-1].key == "kernel"] += x.size * ("data" in spec)
    assert MODELS[name].split(chips) == (sizes[True], sizes[False])


def test_the_command_prints_the_tables_that_are_kept(tmp_path: Path) -> None:
    files = tmp_path / "scaling.json", tmp_path / "scaling.svg"
    command = [sys.executable, "-m", "benchmarks.scaling", f"--json={files[0]}", f"--plot={files[1]}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / "benchmarks" / "scaling_tables.md").read_text(encoding="utf-8")
    page = (ROOT / "benchmarks" / "scaling.md").read_text(encoding="utf-8")
    assert done.stdout.partition("\n\n")[0] in page
    figures = json.loads(files[0].read_text())["steps"]
    assert figures["Unsupervised, 64 sentences a chip; TPU v5e"][-1]["chips"] == 4096
    assert files[1].read_text().startswith("<?xml")


SMALL = Model(CONFIG.num_hidden_layers, CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.vocab_size, 32, 2, 8)


def compiled_step(case: Case, columns: int) -> list[Collective]:
    """Return the collectives of the real step on 8 devices, for the small model of test_topology."""
    kind = Kind(columns)
    made = build(case, kind, jnp.float32)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    shapes = jax.eval_shape(lambda p: init_state(p, optimizer, 5), made.params)
    compiled = compile_train_step(
        make_train_step(made.losses[""], optimizer, range(kind.keys)), made.mesh, state_shardings(made.mesh, shapes)
    )
    text = compiled.lower(shapes, made.batches(0)).compile().as_text()  # pyright: ignore[reportFunctionMemberAccess]
    assert text
    assert SMALL.parameters == sum(p.size for p in jax.tree.leaves(made.params))
    return collectives(text)


def total(found: list[Collective], kind: str) -> int:
    """Bytes of the results of all collectives of one kind, each as often as it runs."""
    assert all(c.times for c in found)
    return sum(c.bytes * (c.times or 0) for c in found if c.kind == kind)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 3], ids=["dropout", "hard negatives"])
def test_a_compiled_step_sends_what_the_model_says(columns: int) -> None:
    """Embeddings and what is split gathered once and scattered once, the rest reduced once: nothing else."""
    found = compiled_step(Case("8 devices", devices=8), columns)
    recipe = UNSUPERVISED if columns == 1 else SUPERVISED
    assert not any(c.times != 1 for c in found)
    assert {c.kind for c in found} == {"all-gather", "reduce-scatter", "all-reduce"}
    embeddings = BATCH * recipe.candidates * SMALL.width * 4
    sent = step(CHIPS["v5e"], 8, BATCH // 8, SMALL, recipe, ASSUMED)
    assert sent.embeddings.inner == 2 * embeddings * 7 / 8

    split = 4 * sum(SMALL.split(8))
    assert 0 < split < 0.3 * 4 * SMALL.parameters  # of this small model, one kernel a layer is wide enough
    assert total(found, "all-gather") == 8 * total(found, "reduce-scatter") == embeddings + split
    metrics = 4 * 7  # the loss and six sums go along
    norms = total(found, "all-reduce") - metrics - (4 * SMALL.parameters - split)
    assert 0 <= norms <= 4 * 4  # of gradients and parameters that are split, sums over their parts
    assert sent.gradients.inner == 2 * 4 * SMALL.parameters * 7 / 8


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [1, 2])
def test_a_compiled_step_with_fsdp_sends_what_the_model_says(chunks: int) -> None:
    """4 x 2 devices: parameters gathered and gradients scattered in pairs, the halves reduced over the four pairs."""
    case = Case("4 x 2", devices=8, fsdp=2, group=4 // chunks, groups_at_once=chunks - 1)
    found = compiled_step(case, 1)
    assert {c.kind for c in found} == {"all-gather", "reduce-scatter", "all-reduce"}
    embeddings = BATCH * SMALL.width * 4
    halves = 4 * sum(SMALL.split(8)) // 2  # what is split over all eight is gathered over four first
    gathered_bytes = total(found, "all-gather") - embeddings - halves
    scattered_bytes = 2 * (total(found, "reduce-scatter") - embeddings // 8 - halves // 4)
    pairs = dataclasses.replace(CHIPS["h100"], inner_size=2)
    recipe = dataclasses.replace(UNSUPERVISED, fsdp=True, chunks=chunks)
    sent = gradients_sent(pairs, 8, SMALL, recipe, ASSUMED)
    # Norm and bias around the layers (one axis each) are never split. One bias a layer the backward pass needs not.
    unsplit, unneeded = 4 * 3 * SMALL.width, 4 * SMALL.width * SMALL.layers
    assert gathered_bytes == 4 * chunks * SMALL.of_layers * (chunks + 1) - chunks * unneeded + (
        (4 * SMALL.around - unsplit) * (1 if chunks == 1 else 3)
    )
    assert scattered_bytes == chunks * (4 * SMALL.parameters - unsplit)
    assert sent.inner == pytest.approx((gathered_bytes + scattered_bytes) / 2, rel=5e-3)
    reduced = [c for c in found if c.kind == "all-reduce"]
    assert not any(c.times != 1 for c in reduced)
    # A few hundred bytes of metrics and squared norms go along.
    across = 2 * sum(c.bytes for c in reduced) + 2 * halves
    assert sent.outer == pytest.approx(across * 3 / 4, rel=0.01)
