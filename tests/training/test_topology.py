"""Layout never changes the numbers: devices, packing, chunks, fsdp, loops and recomputation, with dropout on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from simcse_jax.config.schema import ObjectiveConfig, OptimizerConfig, TeacherConfig
from simcse_jax.data.batches import Batches, Layout
from simcse_jax.data.changes import Tokens, repetition
from simcse_jax.data.examples import ChangedCopies, ColumnExamples, Examples, WithPrompts
from simcse_jax.data.masking import Masking
from simcse_jax.data.mixture import MixedExamples, MixedOrder, SameTwice
from simcse_jax.data.vocabulary import Vocabulary
from simcse_jax.encoder import attention
from simcse_jax.encoder.adapted_params import is_frozen, split_params
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.attention import plain_attention
from simcse_jax.encoder.fused_attention import fused_attention
from simcse_jax.encoder.init import init_params
from simcse_jax.encoder.lora import UP, make_lora
from simcse_jax.encoder.mlm import Predictor
from simcse_jax.encoder.model import Encoder
from simcse_jax.encoder.pooling import after_layers
from simcse_jax.objective.contrastive import Queue
from simcse_jax.objective.layers import of_last_layer
from simcse_jax.objective.losses import graded_losses
from simcse_jax.training.mesh import make_mesh, state_shardings
from simcse_jax.training.optimizer import make_optimizer
from simcse_jax.training.program import build_distillation, build_objective
from simcse_jax.training.state import TrainState, add_objective_state, add_projection, init_state
from simcse_jax.training.step import (
    Loss,
    compile_train_step,
    make_encode_batch,
    make_encode_groups,
    make_loss,
    make_train_step,
)

CONFIG = Architecture("bert", 200, 32, 2, 4, 64, max_position_embeddings=32)
BATCH, MAX_LENGTH, EXAMPLES = 32, 16, 200
VOCABULARY = Vocabulary(np.arange(200) < 5, np.arange(200) > 150, mask_id=4)


class RandomExamples:
    """Examples of random tokens, some of them exact duplicates of others; every fifth lacks its hard negatives."""

    def __init__(self, columns: int):
        rng = np.random.default_rng(0)
        self.lengths = rng.integers(4, MAX_LENGTH + 1, (EXAMPLES, columns)).astype(np.int32)
        self.lengths[::5, 2:] = 0
        self.hashes = rng.integers(0, 60, (EXAMPLES, columns)).astype(np.uint64)  # about half collide in a batch
        self.tokens = rng.integers(5, 200, (EXAMPLES, columns, MAX_LENGTH)).astype(np.int32)

    def token_ids(self, rows: np.ndarray) -> list[list[np.ndarray]]:
        return [[t[:n] for t, n in zip(self.tokens[r], self.lengths[r], strict=True)] for r in rows]


@dataclasses.dataclass(frozen=True)
class Case:
    """Hold one layout of the same run."""

    name: str
    devices: int = 1
    fsdp: int = 1
    group: int = 4
    row_length: int = 32
    one_per_row: bool = False
    groups_at_once: int = 0
    unroll: bool = False
    remat: bool = False
    tile: int = 1024
    fused: bool = False


ONE_DEVICE = Case("1 device")
PADDED = Case("8 devices, padded", devices=8, row_length=16, one_per_row=True)
SPLIT = Case("2 x 2, fsdp, unrolled, a group at a time", devices=4, fsdp=2, unroll=True, groups_at_once=1)
TILED = Case("2 devices, tiles of at most 5", devices=2, tile=5)
LAYOUTS = (
    Case("2 devices", devices=2),
    Case("4 devices, unrolled", devices=4, unroll=True),
    Case("8 devices", devices=8),
    PADDED,
    Case("1 device, padded, larger groups", group=16, row_length=16, one_per_row=True),
    Case("1 device, a group at a time", groups_at_once=1),
    Case("2 devices, a group at a time, recomputed layers", devices=2, groups_at_once=1, remat=True),
    Case("4 x 2, fsdp", devices=8, fsdp=2),
    SPLIT,
    TILED,
)
FOR_OTHERS = (PADDED, SPLIT, TILED)
# The kernels run in interpret mode here, which is slow to compile, and which JAX cannot run on several devices.
FUSED = Case("1 device, fused attention, recomputed layers", row_length=48, remat=True, fused=True)
# Much at once: every kind of training meets this layout.
COMBINED = Case(
    "2 x 2, fsdp, larger groups, one at a time, tiles", devices=4, fsdp=2, group=8, groups_at_once=1, tile=5
)


INFO_NCE, NO_TEACHER = ObjectiveConfig(), TeacherConfig()
SHARES: dict[str, float] = {"triplets": 0.5, "single": 0.2, "graded": 0.3}  # of the sources of a mixture


@dataclasses.dataclass(frozen=True)
class Kind:
    """Hold what is trained, whatever the layout."""

    columns: int = 1
    objective: ObjectiveConfig = INFO_NCE
    mlm: float = 0.0
    cutoff: str = ""
    repeats: bool = False  # the positive is a copy with repeated tokens
    predicts: bool = False  # the positive has tokens of a predictor
    second: str = "none"
    products: str = "float32"
    architecture: Architecture = CONFIG
    pooler: str = "cls"
    teacher: TeacherConfig = NO_TEACHER
    unpooled: tuple[int, ...] = ()  # first tokens of each text that are a prompt's, and not pooled
    lora: int = 0  # the rank of adapters, with all else frozen but the heads
    mixing: str = ""  # of triplets with prompts, single texts and graded pairs, by "example" or by "batch"
    graded_objective: ObjectiveConfig | None = None  # of the graded pairs of a mixture by batch

    @property
    def separate_anchors(self) -> bool:
        """Whether two encoders read an example's texts, each its own."""
        return self.second != "none" and (self.columns > 1 or self.repeats)

    @property
    def keys(self) -> int:
        """Dropout keys of a step."""
        views = 2 if self.columns == 1 and not self.repeats else 1
        return (views if self.objective.loss != "none" else bool(self.teacher.name)) + (self.mlm > 0)

    def examples(self) -> Examples:
        table = RandomExamples(self.columns)
        if self.mixing:
            grades = (np.arange(EXAMPLES) % 7).astype(np.float32)
            triplets = WithPrompts(ColumnExamples(table), (2, 3, 3))
            single, graded = SameTwice(ColumnExamples(RandomExamples(1))), ColumnExamples(RandomExamples(2), grades)
            return MixedExamples([triplets, single, graded], list(SHARES.values()))
        scores = (np.arange(EXAMPLES) % 7).astype(np.float32) if self.objective.loss in graded_losses() else None
        change = repetition(Tokens(None, VOCABULARY, MAX_LENGTH), rate=0.5)
        return ChangedCopies(table, change, 3) if self.repeats else ColumnExamples(table, scores)


class RandomVectors:
    """Vectors of width 24, as of a teacher, by the hash of a text; none for a missing one."""

    width = 24

    def __call__(self, hashes: np.ndarray) -> np.ndarray:
        table = np.random.default_rng(1).normal(size=(60, self.width)).astype(np.float32)
        return table[hashes.astype(int)] * (hashes > 0)[..., None]


WEIGHTED = ObjectiveConfig(hard_negative_weight=2.0, symmetric=True)
NOTHING = ObjectiveConfig("none")
TEACHER = TeacherConfig("any", mse=1.0, kl=2.0, temperature=0.2, student_temperature=0.3)
KINDS = {
    "dropout": Kind(),
    "hard negatives": Kind(3, WEIGHTED),
    "dropout and MLM": Kind(mlm=0.5),
    "MLM": Kind(objective=NOTHING, mlm=1.0),
    "teacher": Kind(3, NOTHING, teacher=TEACHER),
    "dropout and a teacher": Kind(teacher=TEACHER),
    "a teacher of an encoder with a projection of its own": Kind(
        3, NOTHING, teacher=TEACHER, architecture=dataclasses.replace(CONFIG, family="electra", embedding_size=16)
    ),
    "a teacher's margins": Kind(2, NOTHING, teacher=TeacherConfig("any", margin_mse=1.0)),
    "repeated tokens and cut spans": Kind(repeats=True, cutoff="span"),
    "predicted tokens": Kind(predicts=True, cutoff="feature"),
    "learned temperature, products, widths": Kind(
        3, ObjectiveConfig(temperature=5.0, similarity="dot", learned_temperature=True, widths="32,8")
    ),
    "two layers, widths": Kind(3, ObjectiveConfig(widths="32,8", layers="1,2"), pooler=after_layers((1, 2), 2)),
    "semi-hard triplets": Kind(3, ObjectiveConfig("triplet", margin=0.5, symmetric=True)),
    "hardest triplets": Kind(objective=ObjectiveConfig("triplet", margin=0.5, mining="hardest")),
    "all triplets, widths": Kind(3, ObjectiveConfig("triplet", margin=0.5, mining="all", widths="32,8")),
    "margin ranking of a dual encoder, and MLM": Kind(
        3, ObjectiveConfig("margin_ranking", margin=0.5, similarity="dot"), mlm=0.5, second="copy"
    ),
    "sigmoid": Kind(objective=ObjectiveConfig("sigmoid", 0.1, bias=-5.0, learned_temperature=True, learning_rate=0.01)),
    "hard and false negatives": Kind(
        3,
        ObjectiveConfig(
            hard_negative_weight=2.0, hardness=2.0, hardness_of="own", false_negatives="relative", symmetric=True
        ),
    ),
    "graded pairs": Kind(2, ObjectiveConfig("cosent", temperature=0.3)),
    "graded pairs by angle, widths": Kind(2, ObjectiveConfig("angle", temperature=0.3, widths="32,7"), mlm=0.5),
    "a guide": Kind(
        3,
        ObjectiveConfig(hardness=3.0, false_negatives="absolute", false_negative_margin=0.1, guide=True),
        teacher=TeacherConfig("any", kl=1.0),
    ),
    "prompts left out, a dual encoder": Kind(3, pooler="avg", second="copy", unpooled=(2, 3, 3)),
    "poolers of all tokens": Kind(pooler="max+mean_sqrt_len+weighted_mean+last_token"),
    "momentum and queue": Kind(objective=ObjectiveConfig(queue=50), second="momentum", cutoff="token"),
    "fixed false negatives, momentum and queue": Kind(
        objective=ObjectiveConfig(queue=50, false_negatives="fixed", false_negative_margin=0.6), second="momentum"
    ),
    "two layers, and a teacher of the last": Kind(
        2, ObjectiveConfig(layers="1,2"), pooler=after_layers((1, 2), 2), teacher=TEACHER
    ),
    "a mixture": Kind(3, WEIGHTED, mixing="example", pooler="avg"),
    "a mixture with a loss of a source's own": Kind(
        3, WEIGHTED, mixing="batch", graded_objective=ObjectiveConfig("cosent", temperature=0.3)
    ),
    "a mixture and a teacher": Kind(3, NOTHING, mixing="example", teacher=TEACHER),
    "a mixture by batch, a teacher and MLM": Kind(3, WEIGHTED, mixing="batch", teacher=TEACHER, mlm=0.5),
    "graded pairs and a teacher": Kind(2, ObjectiveConfig("cosent", temperature=0.3), teacher=TEACHER),
    "adapters": Kind(3, WEIGHTED, lora=2),
    "adapters and a mixture": Kind(3, WEIGHTED, mixing="example", lora=2),
    "adapters, a guide and a teacher": Kind(
        3, ObjectiveConfig(false_negatives="relative", guide=True), lora=2, teacher=TEACHER
    ),
    "adapters of a dual encoder, and MLM": Kind(3, mlm=0.5, second="copy", lora=2),
}
# Further parts of a loss that may be combined, several in each.
COMBINATIONS = {
    "adapters, momentum, a queue and hard negatives": Kind(3, ObjectiveConfig(queue=50), second="momentum", lora=2),
    "a mixture, a guide and momentum": Kind(
        3,
        ObjectiveConfig(false_negatives="absolute", false_negative_margin=0.1, guide=True, symmetric=True),
        mixing="example",
        second="momentum",
        teacher=TeacherConfig("any", kl=1.0),
    ),
    "a mixture and a teacher's margins": Kind(
        3, NOTHING, mixing="example", teacher=TeacherConfig("any", margin_mse=1.0)
    ),
    "a mixture, triplets, false negatives and widths": Kind(
        3, ObjectiveConfig("triplet", margin=0.5, false_negatives="relative", widths="32,8"), mixing="example"
    ),
    "false negatives of margin ranking": Kind(
        3, ObjectiveConfig("margin_ranking", margin=0.5, false_negatives="fixed", false_negative_margin=0.6)
    ),
    "false negatives of sigmoid": Kind(
        objective=ObjectiveConfig("sigmoid", 0.1, bias=-5.0, false_negatives="absolute")
    ),
    "two layers of a mixture, and false negatives": Kind(
        3,
        ObjectiveConfig(layers="1,2", false_negatives="absolute", false_negative_margin=0.1),
        pooler=after_layers((1, 2), 2),
        mixing="example",
    ),
    "two layers of graded pairs": Kind(
        2, ObjectiveConfig("angle", temperature=0.3, layers="1,2"), pooler=after_layers((1, 2), 2)
    ),
}
KINDS |= COMBINATIONS
_ROTARY: dict[str, Any] = {"gated": True, "rope_theta": 1e3}
_ALL_PRODUCTS = tuple(CONFIG.layer_products)
# How other families' encoders differ from BERT's, all with the heads of both losses.
FAMILIES: dict[str, dict[str, Any]] = {
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16, "shared_layers": True},
    "mpnet": {"relative_buckets": 32},
    "deberta-v2": {"disentangled_buckets": 6, "type_vocab_size": 0},
    "modernbert": _ROTARY
    | {"pre_norm": True, "without_bias": (*_ALL_PRODUCTS, "norm", "mlm/dense"), "type_vocab_size": 0}
    | {"local_layers": (2,), "local_window": 3, "local_rope_theta": 1e2},
    "nomic_bert": _ROTARY | {"without_bias": _ALL_PRODUCTS},
    "gte": _ROTARY | {"without_bias": ("ffn/up",), "rope_scale": 0.9},
}
KINDS["adapters of joined products"] = Kind(
    lora=3, architecture=dataclasses.replace(CONFIG, family="modernbert", **FAMILIES["modernbert"])
)
KINDS |= {
    family: Kind(mlm=0.5, architecture=dataclasses.replace(CONFIG, family=family, **changes))
    for family, changes in FAMILIES.items()
}
# What these have, others that are tested fast have too.
SLOW_ALWAYS = (
    *("predicted tokens", "MLM", "dropout and a teacher", "a teacher's margins", "graded pairs"),
    *("two layers, widths", "semi-hard triplets", "hardest triplets", "electra", "nomic_bert", "gte"),
    *("adapters of joined products", "adapters of a dual encoder, and MLM", "adapters, a guide and a teacher"),
    *("fixed false negatives, momentum and queue", "two layers, and a teacher of the last"),
    *("a mixture by batch, a teacher and MLM", "graded pairs and a teacher", "adapters and a mixture"),
    *("margin ranking of a dual encoder, and MLM", "all triplets, widths", "mpnet", "albert", "deberta-v2"),
    *("a mixture", "a teacher of an encoder with a projection of its own", "graded pairs by angle, widths"),
    *COMBINATIONS,
)
# These meet every layout: in the fast tests but for MLM, which meets those there that cut its batches in other ways.
ON_ALL = ("dropout", "hard negatives", "dropout and MLM")


@dataclasses.dataclass(frozen=True)
class Built:
    """Hold what a layout needs to run."""

    mesh: Mesh
    batches: Batches
    losses: dict[str, Loss]  # by source; "" for the others
    params: Any
    extra: Any
    frozen: Any  # None where all parameters are trained

    def source(self, step: int) -> str:
        """Return the source of that step's batch where it has a loss of its own, else ""."""
        source = self.batches.order.source(step)
        return source if source in self.losses else ""


def after_some_updates(params: Any) -> Any:
    """Return parameters whose adapters have left their start, where B is 0 and A gets no gradient."""

    def moved(path: Any, x: jax.Array) -> jax.Array:
        return x + 0.05 * jnp.sin(jnp.arange(x.size)).reshape(x.shape).astype(x.dtype) if path[-1].key == UP else x

    return jax.tree_util.tree_map_with_path(moved, params)


def build(case: Case, kind: Kind, dtype: Any) -> Built:
    mesh = make_mesh(case.devices // case.fsdp, case.fsdp)
    layout = Layout(BATCH, case.group, case.row_length, case.one_per_row, kind.separate_anchors)
    masking = Masking(VOCABULARY, 0.3, whole_word=True, seed=3) if kind.mlm else None
    hiding = Masking(VOCABULARY, 0.4, whole_word=False, seed=3, all_masked=True) if kind.predicts else None
    vectors: Any = RandomVectors() if kind.teacher.name else None
    examples = WithPrompts(kind.examples(), kind.unpooled) if kind.unpooled else kind.examples()
    rows, shares = dict.fromkeys(SHARES, EXAMPLES), list(SHARES.values())
    order = MixedOrder(rows, shares, BATCH, 4, kind.mixing == "batch") if kind.mixing else None
    batches = Batches(examples, layout, 3, masking, hiding, vectors=vectors, order=order)
    config = dataclasses.replace(kind.architecture, cutoff=kind.cutoff, cutoff_rate=0.3)
    lora = make_lora(config, kind.lora, 3.0, "all") if kind.lora else None
    encoder = Encoder(config, dtype, dtype, kind.products, lora, has_head=True, has_mlm_head=kind.mlm > 0)
    predictor = Predictor(Encoder(CONFIG, dtype, dtype, has_mlm_head=True), VOCABULARY.special)
    of_predictor = jax.jit(lambda: init_params(predictor.encoder, 2))() if kind.predicts else None
    objectives = {"": kind.objective} | ({"graded": kind.graded_objective} if kind.graded_objective else {})
    params, frozen = jax.jit(lambda: init_params(encoder, 1))(), None
    if kind.lora:
        params, frozen = split_params(after_some_updates(params))
    width = kind.architecture.hidden_size
    params, extra = add_objective_state(kind.second, kind.objective, params, width, of_predictor)
    if kind.teacher.mse:
        params = add_projection(params, (width, vectors.width), 1)
    encode = make_encode_groups(
        encoder.clone(
            attend=functools.partial(fused_attention, interpret=True) if case.fused else plain_attention,
            unroll=case.unroll,
            remat=case.remat,
        ),
        kind.pooler,
        case.group,
        mesh,
        predictor if kind.predicts else None,
    )
    in_batches = make_encode_batch(encode, mesh, case.groups_at_once, dtype, kind.lora > 0)
    distillation = build_distillation(kind.teacher, case.tile, mesh)
    if distillation and kind.objective.layers:
        distillation = of_last_layer(distillation, kind.objective.matryoshka_layers)
    losses = {
        source: make_loss(
            in_batches, build_objective(dataclasses.replace(each, tile=case.tile), mesh), kind.mlm, distillation
        )
        for source, each in objectives.items()
    }
    return Built(mesh, batches, losses, params, extra, frozen)


def after_some_steps(made: Built, queue: int) -> Built:
    """Return a run as after some steps: the queue partly filled, the momentum encoder another than the first."""
    if not queue:
        return made
    rng = np.random.default_rng(4)
    z = rng.standard_normal(made.extra["queue"].z.shape).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    # Texts of the batch among them, which are nobody's negatives there.
    texts = np.where(np.arange(queue) % 3 == 0, np.resize(made.batches(2).text_ids[0], queue), 10**6 + np.arange(queue))
    filled = Queue(jnp.asarray(z), jnp.asarray(texts, jnp.int32), jnp.int32(queue - 7))
    second = jax.tree.map(lambda x: x + 0.05 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), made.extra["second"])
    return dataclasses.replace(made, extra=made.extra | {"queue": filled, "second": second})


def gradients(case: Case, kind: Kind) -> tuple[float, Any]:
    return gradient_program(case, kind)()


def gradient_program(case: Case, kind: Kind) -> Callable[[], tuple[float, Any]]:
    """Return a function that computes loss and gradients on this layout, always the same."""
    made = after_some_steps(build(case, kind, jnp.float32), kind.objective.queue)
    keys = jnp.arange(2 * kind.keys, dtype=jnp.uint32).reshape(kind.keys, 2) + jnp.uint32(7)
    given = (made.params, made.extra, made.batches(2), keys, made.frozen)
    with jax.sharding.set_mesh(made.mesh):
        loss = made.losses[made.source(2)]
        of_params = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*given).compile()

    def run() -> tuple[float, Any]:
        (value, _), grads = of_params(*given)
        return float(value), jax.device_get(grads)

    return run


@functools.cache
def reference_gradients(name: str) -> tuple[float, Any]:
    return gradients(ONE_DEVICE, KINDS[name])


class Trained(NamedTuple):
    """A run in float64: the loss and the gradient's norm of each step, and the arrays at the end."""

    losses: list[float]
    norms: list[float]
    arrays: Any


def trained(case: Case, kind: Kind, steps: int) -> Trained:
    with jax.enable_x64(True):
        made = build(case, kind, jnp.float64)
        made.batches.row_counts = made.batches.row_counts[-1:]  # the largest only: one shape to compile
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), steps, kind.objective.learning_rate or None)

        def start() -> TrainState:
            return init_state(made.params, optimizer, 5, made.extra)

        shardings = state_shardings(made.mesh, jax.eval_shape(start))
        state = jax.device_put(start(), shardings)
        frozen = () if made.frozen is None else (jax.device_put(made.frozen, frozen_shardings(made)),)
        held = frozen and (frozen_shardings(made),)
        steps_of = {
            source: compile_train_step(
                make_train_step(loss, optimizer, range(kind.keys), momentum=0.9), made.mesh, shardings, *held
            )
            for source, loss in made.losses.items()
        }
        assert {made.source(n) for n in range(3)} == made.losses.keys()
        losses, norms = [], []
        for n in range(steps):
            state, metrics = steps_of[made.source(n)](state, made.batches(n), *frozen)
            losses.append(float(metrics["loss"]))
            norms.append(float(metrics["gradient_norm"]))
        return Trained(losses, norms, jax.device_get((state.params, state.extra)))


def frozen_shardings(made: Built) -> Any:
    return state_shardings(made.mesh, made.frozen, is_frozen)


@functools.cache
def reference_run(name: str, steps: int) -> Trained:
    return trained(ONE_DEVICE, KINDS[name], steps)


def crossed(fast: Callable[[str, Case], bool]) -> list[Any]:
    """Return three kinds on every layout, and all others on four; slow unless `fast` says otherwise."""
    return [
        pytest.param(name, case, id=f"{name} on {case.name}", marks=[] if fast(name, case) else pytest.mark.slow)
        for name in KINDS
        for case in ((*LAYOUTS, COMBINED, FUSED) if name in ON_ALL else (*FOR_OTHERS, COMBINED))
    ]


def is_fast(name: str, case: Case) -> bool:
    with_mlm = (COMBINED, *(case for case in LAYOUTS if case.one_per_row or case.groups_at_once))
    return name in ON_ALL and case is not FUSED and ("MLM" not in name or case in with_mlm)


def is_in_long_runs(name: str, case: Case) -> bool:
    return name in ON_ALL or case is COMBINED


def largest_gap(some: Any, others: Any) -> float:
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), some, others)))


@pytest.mark.medium
@pytest.mark.parametrize(("name", "case"), crossed(is_fast))
def test_gradients_are_equal_on_every_layout(name: str, case: Case) -> None:
    loss, reference = reference_gradients(name)
    largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(reference))
    assert largest > 1e-3
    other_loss, grads = gradients(case, KINDS[name])
    assert other_loss == pytest.approx(loss, abs=1e-5)
    assert largest_gap(grads, reference) < 1e-5 * largest


@pytest.mark.medium
def test_with_products_of_bfloat16_a_layout_repeats_exactly_and_others_differ_by_rounding() -> None:
    kind = Kind(products="bfloat16")
    on_one = gradient_program(ONE_DEVICE, kind)
    _, reference = on_one()
    assert largest_gap(on_one()[1], reference) == 0
    largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(reference))
    # A factor that layouts sum in another order may round to the neighbour, 2^-8 of it away.
    assert largest_gap(gradients(COMBINED, kind)[1], reference) < 2e-3 * largest


def test_another_dropout_key_gives_another_gradient() -> None:
    """The negative case: were dropout off, all layouts would agree for free."""
    made = build(ONE_DEVICE, Kind(), jnp.float32)
    keys = [jnp.full((2, 2), n, jnp.uint32) + jnp.arange(2, dtype=jnp.uint32)[:, None] for n in (1, 2)]
    loss = jax.jit(made.losses[""])
    values = [float(loss(made.params, made.extra, made.batches(2), each)[0]) for each in keys]
    assert abs(values[0] - values[1]) > 1e-4


def require_equal_runs(name: str, case: Case, steps: int) -> None:
    reference, other = reference_run(name, steps), trained(case, KINDS[name], steps)
    np.testing.assert_allclose(other.losses, reference.losses, atol=1e-9)
    np.testing.assert_allclose(other.norms, reference.norms, rtol=1e-9)  # Adam hides the scale of gradients
    assert largest_gap(other.arrays, reference.arrays) < 1e-9


@pytest.mark.parametrize(
    "name", [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW_ALWAYS else ()) for kind in KINDS]
)
def test_a_few_steps_are_equal_in_float64(name: str) -> None:
    require_equal_runs(name, COMBINED, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modernbert", "mpnet", "deberta-v2"])
def test_rows_in_blocks_are_as_whole_rows_on_several_devices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reference_run(name, 3)
    for constant, value in (("LONGEST_WHOLE_ROW", 8), ("QUERIES", 8), ("REACH", 3)):
        monkeypatch.setattr(attention, constant, value)
    blocks = trained(COMBINED, KINDS[name], 3)
    np.testing.assert_allclose(blocks.losses, whole.losses, atol=1e-9)
    assert largest_gap(blocks.arrays, whole.arrays) < 1e-9


# Three kinds on every layout, and the others on the one that has much at once.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), [p for p in crossed(lambda *_: False) if is_in_long_runs(*p.values)])
def test_30_steps_are_equal_in_float64(name: str, case: Case) -> None:
    losses = reference_run(name, 30).losses
    assert losses[-1] < losses[0] or KINDS[name].objective.queue  # a queue that fills makes the loss rise
    require_equal_runs(name, case, 30)
