"""A recipe's ConfigDict to frozen dataclasses, once, with all validation, before any device work.

The meaning of each key stands in configs/base.py; sections and fields here have the same names. `resolve` also settles
what depends on the machine: the mesh, the group size and the row length, which are layout and change no number.
Longer than most files here, so that every key stands in one place with its limits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, get_type_hints

from simcse_jax.config.idle_keys import idle_keys, way_out
from simcse_jax.data.positives import POSITIVES, WINDOWS, Positive
from simcse_jax.encoder.architecture import CUTOFFS
from simcse_jax.encoder.pooling import POOLERS
from simcse_jax.system.errors import UserError

LOSSES = ("info_nce", "triplet", "margin_ranking", "sigmoid", "none")
SIMILARITIES = ("cosine", "dot")
MINING = ("all", "semi_hard", "hardest")
SECOND_ENCODERS = ("none", "copy", "momentum")
LARGEST_GROUP = 64
LONGEST_ROW = 512
DURATIONS = ("steps", "epochs", "examples")

# Keys that may change between the parts of one run: none of them changes the mathematics.
LAYOUT_KEYS = frozenset(
    {
        "model.unroll",
        "model.remat",
        "data.files",  # where the text lies; what it says is compared by its fingerprint, and so are the other files
        "data.packed",
        "data.row_length",
        "data.cache_dir",
        "train.groups_at_once",
        "train.log_every_steps",
        "objective.tile",
        "eval.data",
        "mlm.validation",
        "data.synonyms",
        "eval.every_steps",
        "eval.patience",
        "checkpoint.every_steps",
        "mesh.data",
        "mesh.fsdp",
    }
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    name: str = ""
    init: str = "pretrained"
    num_hidden_layers: int = 0
    hidden_size: int = 0
    num_attention_heads: int = 0
    intermediate_size: int = 0
    tokenizer: str = ""
    vocab_size: int = 0
    pooler: str = "cls_before_pooler"
    train_pooler: str = "cls"
    second_encoder: str = "none"
    momentum: float = 0.999
    dropout: float = 0.1
    same_mask: bool = False
    cutoff: str = ""
    cutoff_rate: float = 0.1
    dtype: str = "float32"
    unroll: str = "auto"
    remat: bool = False

    @property
    def has_head(self) -> bool:
        """Whether a dense + tanh head is trained or used."""
        return "cls" in (self.pooler, self.train_pooler)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    files: str = ""
    columns: str = ""
    positive: str = "dropout"
    rate: float = 0.1
    window: int = 1
    synonyms: str = ""
    mask_model: str = ""
    max_length: int = 32
    packed: bool = True
    row_length: int = 0
    cache_dir: str = ""

    @property
    def how(self) -> Positive:
        """How positives are made."""
        return Positive(self.positive, self.rate, self.window, self.synonyms)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    batch_size: int = 64
    steps: int = 0
    epochs: float = 0.0
    examples: int = 0
    seed: int = 0
    groups_at_once: int = 0
    log_every_steps: int = 10

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole run: whole batches only, at least one."""
        if self.steps:
            return self.steps
        steps = self.examples / self.batch_size if self.examples else self.epochs * steps_per_epoch
        return max(int(steps + 1e-6), 1)  # 0.29 x 100 is 28.999...


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    loss: str = "info_nce"
    temperature: float = 0.05
    hard_negative_weight: float = 1.0
    similarity: str = "cosine"
    learned_temperature: bool = False
    learning_rate: float = 0.0
    bias: float = -10.0
    margin: float = 0.2
    mining: str = "semi_hard"
    widths: str = ""
    queue: int = 0
    symmetric: bool = False
    mask_duplicates: bool = True
    tile: int = 1024

    @property
    def matryoshka_widths(self) -> tuple[int, ...]:
        """The widths of a Matryoshka loss; empty without one."""
        return tuple(int(width) for width in self.widths.split(",") if width.strip())


@dataclasses.dataclass(frozen=True)
class MlmConfig:
    weight: float = 0.0
    rate: float = 0.15
    whole_word: bool = False
    validation: str = ""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = 3e-5
    warmup_steps: int = 0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    data: str = ""
    every_steps: int = 125
    patience: int = 0


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = 500


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int = -1
    fsdp: int = 1

    @property
    def devices(self) -> int:
        return self.data * self.fsdp


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole recipe, checked. `group_size` is settled by `resolve`, not a key."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    objective: ObjectiveConfig
    mlm: MlmConfig
    optimizer: OptimizerConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    mesh: MeshConfig
    group_size: int = dataclasses.field(metadata={"derived": True}, default=0)

    def in_batches_of(self, size: int) -> Config:
        """The same with batches of this size, which its devices divide, and no more groups at a time."""
        group_size = _group_size(size, self.mesh.devices)
        at_once = self.train.groups_at_once and math.gcd(
            self.train.groups_at_once, size // self.mesh.devices // group_size
        )
        train = dataclasses.replace(self.train, batch_size=size, groups_at_once=at_once)
        return dataclasses.replace(self, train=train, group_size=group_size)

    def flat(self) -> dict[str, Any]:
        """Every key of the recipe by its full name, "train.seed" for example."""
        sections = dataclasses.asdict(self)
        del sections["group_size"]
        return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def defaults() -> dict[str, Any]:
    """Every key at what a recipe of before that key meant."""
    sections = get_type_hints(Config)
    return Config(**{f.name: sections[f.name]() for f in dataclasses.fields(Config) if not f.metadata}).flat()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys that change the mathematics and differ, with both values; arguments are from `Config.flat`.

    Not those that had no effect in the old recipe: they were not always refused.
    """
    idle = idle_keys(defaults() | dict(old), defaults()) if old else []
    keys = sorted((old.keys() | new.keys()) - LAYOUT_KEYS - {*idle})
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def resolve(recipe: Any, overridden: Collection[str], devices: int, x64: bool = False, processes: int = 1) -> Config:
    """The checked configuration of a run on `devices` visible devices, of all `processes` together.

    recipe: a ConfigDict or nested mapping with the sections of configs/base.py; overridden: full names of the keys
    that the command line gave. Raises UserError, with the key, its value, the limit and a value that works.
    """
    train = _one_duration(dict(recipe["train"]), overridden)
    sections = {
        field.name: _section(field.name, recipe[field.name] if field.name != "train" else train)
        for field in dataclasses.fields(Config)
        if not field.metadata
    }
    config = Config(**sections)
    for check in (_check_model, _check_ranges, _check_positives, _check_losses):
        check(config)
    values = config.flat()
    if idle := idle_keys(values, defaults()):
        raise UserError(way_out(idle[0], values, defaults()))
    if config.model.dtype == "float64" and not x64:
        raise UserError("model.dtype = 'float64' needs JAX's 64-bit mode.\nSet JAX_ENABLE_X64=1, or use float32.")
    mesh = _mesh(config.mesh, devices, processes)
    config = dataclasses.replace(config, mesh=mesh, group_size=_group_size(config.train.batch_size, mesh.devices))
    _check_layout(config)
    return config


def _section(name: str, values: Mapping[str, Any]) -> Any:
    """The dataclass of one section, every value of the type that its field names."""
    section = get_type_hints(Config)[name]
    types = get_type_hints(section)
    unknown = sorted(set(values) - set(types))
    if unknown:
        raise UserError(f"{name}.{unknown[0]} is no key of a recipe.\nKeys of {name}: {', '.join(types)}.")
    checked = {}
    for key, value in values.items():
        kind = types[key]
        value = float(value) if kind is float and type(value) is int else value
        if type(value) is not kind:
            raise UserError(f"{name}.{key} = {value!r} is a {type(value).__name__}; it takes a {kind.__name__}.")
        checked[key] = value
    return section(**checked)


def _one_duration(train: dict[str, Any], overridden: Collection[str]) -> dict[str, Any]:
    """train with exactly one duration: the one given on the command line replaces the recipe's, whatever its unit."""
    for key in DURATIONS:
        _require(0 <= train[key] < float("inf"), f"train.{key}", train[key], "0 or more, and finite", 1)
    given = [key for key in DURATIONS if f"train.{key}" in overridden and train[key]]
    chosen = given or [key for key in DURATIONS if train[key]]
    if len(chosen) != 1:
        values = ", ".join(f"train.{key} = {train[key]}" for key in DURATIONS)
        raise UserError(f"Exactly one duration must be above 0, and {len(chosen)} are: {values}.\nGive one of them.")
    return train | {key: type(train[key])(0) for key in DURATIONS if key != chosen[0]}


def _require(ok: bool, key: str, value: Any, limit: str, works: Any) -> None:
    if not ok:
        raise UserError(f"{key} = {value!r}: must be {limit}.\nFor example --config.{key}={works}")


def _check_model(config: Config) -> None:
    model = config.model
    _require(model.init in ("pretrained", "random"), "model.init", model.init, "pretrained or random", "pretrained")
    for key in ("pooler", "train_pooler"):
        value = getattr(model, key)
        _require(value in POOLERS, f"model.{key}", value, f"one of {', '.join(POOLERS)}", "cls")
    if model.pooler == "cls" and model.train_pooler != "cls":
        raise UserError(
            f"model.pooler = 'cls' evaluates through a head that model.train_pooler = {model.train_pooler!r} never "
            "trains.\nUse --config.model.train_pooler=cls, or another model.pooler."
        )
    dtypes = ("float32", "bfloat16", "float64")
    _require(model.unroll in ("auto", "on", "off"), "model.unroll", model.unroll, "auto, on or off", "auto")
    _require(model.dtype in dtypes, "model.dtype", model.dtype, f"one of {', '.join(dtypes)}", "float32")
    if model.init == "pretrained":
        _require(bool(model.name), "model.name", model.name, "a folder or Hub name", "bert-base-uncased")
        for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"):
            value = getattr(model, key)
            if value:
                raise UserError(
                    f"model.{key} = {value} changes the sizes of pretrained weights.\n"
                    "Leave it at 0, or start from random weights with --config.model.init=random."
                )
    if model.tokenizer == "train":
        _require(model.init == "random", "model.init", model.init, "random when model.tokenizer = 'train'", "random")
        _require(model.vocab_size >= 100, "model.vocab_size", model.vocab_size, "100 or more to train one", 8000)
    elif model.vocab_size:
        raise UserError(
            f"model.vocab_size = {model.vocab_size} has no effect on a tokenizer that exists.\n"
            "Leave it at 0, or train one with --config.model.tokenizer=train --config.model.init=random."
        )
    elif not model.name and not model.tokenizer:
        raise UserError(
            "model.name and model.tokenizer are both empty, so there is no tokenizer.\nGive a folder with "
            "--config.model.tokenizer=DIR, or --config.model.tokenizer=train --config.model.vocab_size=8000."
        )


def _check_ranges(config: Config) -> None:
    _require(bool(config.data.files), "data.files", config.data.files, "a file, glob or Hub name", "sentences.txt")
    at_least = {
        "data.max_length": 3,
        "data.row_length": 0,
        "train.batch_size": 2,
        "train.steps": 0,
        "train.epochs": 0,
        "train.examples": 0,
        "train.seed": 0,
        "train.groups_at_once": 0,
        "train.log_every_steps": 1,
        "optimizer.warmup_steps": 0,
        "objective.learning_rate": 0,
        "optimizer.weight_decay": 0,
        "optimizer.clip_norm": 0,
        "eval.every_steps": 1,
        "eval.patience": 0,
        "checkpoint.every_steps": 1,
        "mesh.fsdp": 1,
    }
    values = config.flat()
    for key, low in at_least.items():
        _require(low <= values[key] < float("inf"), key, values[key], f"{low} or more, and finite", max(low, 1))
    tile = config.objective.tile
    _require(tile >= 0, "objective.tile", tile, "0 (no tiles) or more", 1024)
    for key, works in {
        "objective.temperature": 0.05,
        "objective.hard_negative_weight": 1.0,
        "optimizer.learning_rate": 3e-5,
        "optimizer.eps": 1e-8,
    }.items():
        _require(0 < values[key] < float("inf"), key, values[key], "above 0 and finite", works)
    for key, works in {"model.dropout": 0.1, "optimizer.b1": 0.9, "optimizer.b2": 0.999}.items():
        _require(0 <= values[key] < 1, key, values[key], "in [0, 1)", works)


def _check_positives(config: Config) -> None:
    data, model = config.data, config.model
    _require(data.positive in POSITIVES, "data.positive", data.positive, f"one of {', '.join(POSITIVES)}", "dropout")
    _require(0 <= data.rate < 1, "data.rate", data.rate, "in [0, 1)", 0.1)
    _require(data.window in WINDOWS, "data.window", data.window, "1 or 3", 1)
    _require(
        model.cutoff in CUTOFFS, "model.cutoff", model.cutoff, f"one of {', '.join(CUTOFFS[1:])}, or empty", "token"
    )
    _require(0 < model.cutoff_rate < 1, "model.cutoff_rate", model.cutoff_rate, "above 0 and below 1", 0.1)
    twice = data.positive == "dropout" and config.objective.loss != "none"
    if data.positive == "mask" and config.objective.loss != "none":
        _require(data.rate > 0, "data.rate", data.rate, "above 0 with data.positive = 'mask'", 0.15)
        if model.init == "random" and not data.mask_model:
            raise UserError(
                "data.positive = 'mask' lets the pretrained model predict tokens, and random weights predict nothing.\n"
                "Start from a pretrained model, or name one with the same tokenizer: --config.data.mask_model=DIR."
            )
    if model.same_mask and not twice:
        raise UserError(
            "model.same_mask = True is for two views of one sentence: data.positive = 'dropout' with a contrastive "
            f"objective.loss. This is {data.positive!r} with {config.objective.loss!r}.\nLeave it at False."
        )
    if model.same_mask and model.cutoff:
        raise UserError(
            "model.same_mask = True lets nothing tell two views apart, so "
            f"model.cutoff = {model.cutoff!r} would cut the same of both.\nUse one of them: --config.model.cutoff= or "
            "--config.model.same_mask=False."
        )
    if data.positive == "crop":
        _require(data.rate > 0, "data.rate", data.rate, "above 0 with data.positive = 'crop'", 0.1)
    if config.objective.loss == "none" and (model.cutoff or data.positive not in ("dropout", "columns")):
        key, works = ("model.cutoff", "") if model.cutoff else ("data.positive", "dropout")
        raise UserError(
            f"{key} = {config.flat()[key]!r} has no effect with objective.loss = 'none': nothing is compared.\n"
            f"Use --config.{key}={works}"
        )
    if twice and not (model.dropout or model.cutoff or model.same_mask):
        raise UserError(
            "model.dropout = 0 with data.positive = 'dropout': both views of a sentence would be the same vector.\n"
            "Use --config.model.dropout=0.1, pairs with --config.data.positive=columns, or, if this is what you want "
            "to study, --config.model.same_mask=True."
        )


def _check_losses(config: Config) -> None:
    loss, mlm = config.objective.loss, config.mlm
    _require(loss in LOSSES, "objective.loss", loss, f"one of {', '.join(LOSSES)}", LOSSES[0])
    _require(0 <= mlm.weight < float("inf"), "mlm.weight", mlm.weight, "0 or more, and finite", 0.1)
    _require(0 < mlm.rate < 1, "mlm.rate", mlm.rate, "above 0 and below 1", 0.15)
    _check_objective(config)
    if loss == "none" and not mlm.weight:
        raise UserError(
            "objective.loss = 'none' with mlm.weight = 0 leaves nothing to train.\n"
            "Use --config.mlm.weight=1, or --config.objective.loss=info_nce."
        )
    if loss == "none" and config.model.has_head:
        raise UserError(
            "objective.loss = 'none' never trains the head of the pooler 'cls'.\n"
            "Use --config.model.pooler=avg --config.model.train_pooler=avg."
        )


def _check_objective(config: Config) -> None:
    objective, model = config.objective, config.model
    for key, allowed in {"similarity": SIMILARITIES, "mining": MINING}.items():
        value = getattr(objective, key)
        _require(value in allowed, f"objective.{key}", value, f"one of {', '.join(allowed)}", allowed[0])
    _require(
        model.second_encoder in SECOND_ENCODERS,
        "model.second_encoder",
        model.second_encoder,
        f"one of {', '.join(SECOND_ENCODERS)}",
        "copy",
    )
    _require(0 <= model.momentum < 1, "model.momentum", model.momentum, "in [0, 1)", 0.999)
    _require(0 < objective.margin < float("inf"), "objective.margin", objective.margin, "above 0 and finite", 0.2)
    _require(abs(objective.bias) < float("inf"), "objective.bias", objective.bias, "finite", -10.0)
    _require(objective.queue >= 0, "objective.queue", objective.queue, "0 (none) or more", 1024)
    try:
        widths = objective.matryoshka_widths
    except ValueError:
        widths = (0,)
    _require(
        all(width > 0 for width in widths) and len(set(widths)) == len(widths),
        "objective.widths",
        objective.widths,
        "comma-separated numbers above 0, each once",
        "768,256,64",
    )
    if objective.queue and (objective.loss != "info_nce" or model.second_encoder != "momentum"):
        raise UserError(
            f"objective.queue = {objective.queue}: a queue holds what the second encoder made of earlier batches, and "
            "serves info_nce.\nUse --config.model.second_encoder=momentum --config.objective.loss=info_nce, or leave "
            "it out."
        )
    if model.second_encoder != "none" and objective.loss == "none":
        raise UserError(
            f"model.second_encoder = {model.second_encoder!r}: masked language modelling alone has no positives to "
            "encode.\nUse --config.model.second_encoder=none, or leave it out."
        )


def _mesh(mesh: MeshConfig, visible: int, processes: int) -> MeshConfig:
    """The mesh with data = -1 replaced by the devices there are."""
    together = f" to {processes} processes, which all take part" if processes > 1 else ""
    if mesh.data == -1:
        if visible % mesh.fsdp:
            fits = max(n for n in range(1, mesh.fsdp + 1) if visible % n == 0)
            raise UserError(
                f"mesh.fsdp = {mesh.fsdp} does not divide the {visible} visible devices.\n"
                f"Use --config.mesh.fsdp={fits}."
            )
        return dataclasses.replace(mesh, data=visible // mesh.fsdp)
    _require(mesh.data >= 1, "mesh.data", mesh.data, "-1 (all devices) or 1 and more", -1)
    if mesh.devices > visible or (processes > 1 and mesh.devices < visible):
        raise UserError(
            f"mesh.data x mesh.fsdp = {mesh.data} x {mesh.fsdp} = {mesh.devices} devices, and {visible} are visible"
            f"{together}.\n"
            "Use --config.mesh.data=-1 for all that there are."
        )
    return mesh


def _group_size(batch_size: int, devices: int) -> int:
    """The largest group, at most 64 examples, that divides each device's share of the batch."""
    if batch_size % devices:
        below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
        nearest = [str(n) for n in (below, above) if n >= 2]
        raise UserError(
            f"train.batch_size = {batch_size} does not divide over {devices} devices.\n"
            f"The nearest that do: {' and '.join(nearest)} (--config.train.batch_size={above}), or use fewer devices "
            "with --config.mesh.data."
        )
    share = batch_size // devices
    return max(size for size in range(1, min(share, LARGEST_GROUP) + 1) if share % size == 0)


def _check_layout(config: Config) -> None:
    at_once = config.train.groups_at_once
    groups = config.train.batch_size // config.mesh.devices // config.group_size
    if at_once and groups % at_once:
        fits = [str(n) for n in range(1, groups + 1) if groups % n == 0]
        raise UserError(
            f"train.groups_at_once = {at_once} does not divide the {groups} groups of {config.group_size} examples "
            f"that each device has.\nUse one of {', '.join(fits)}, or 0 for all at once."
        )
    row, longest = config.data.row_length, config.data.max_length
    if row and row < longest:
        raise UserError(
            f"data.row_length = {row} is shorter than data.max_length = {longest}.\n"
            f"Use --config.data.row_length={longest} or more, or 0 to have it chosen."
        )


def row_length(data: DataConfig) -> int:
    """Tokens of a row: as configured; else max_length unpacked, and twice that (at most 512) when packed.

    Longer rows pack tighter, and their attention costs more; twice the longest sentence wastes little of either.
    """
    if data.row_length or not data.packed:
        return data.row_length or data.max_length
    return max(min(2 * data.max_length, LONGEST_ROW), data.max_length)
