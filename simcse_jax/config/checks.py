"""Check that the keys of a recipe go together, and that each of them has an effect."""

from __future__ import annotations

from typing import Any

from simcse_jax.config.compare import idle_keys, idle_message
from simcse_jax.config.keys import parse_numbers
from simcse_jax.config.schema import KEYS, SOURCE_DATA, SOURCES, Config
from simcse_jax.config.sections.objective import NO_LOSS
from simcse_jax.config.sources import about_source
from simcse_jax.data.positives import POSITIVES
from simcse_jax.data.prompts import parse_prompts
from simcse_jax.objective.distillation import DISTILLATIONS, NEED_PAIRS
from simcse_jax.objective.losses import graded_losses
from simcse_jax.system.errors import UserError

OF_SOURCES = tuple(f"data.{field}" for field in SOURCE_DATA)  # keys that a source may have of its own


def require_consistent(config: Config, needs_data: bool = True) -> None:
    """Raise UserError where keys that are each in range do not go together, and without data unless none are needed."""
    _check_sources(config)
    parts = config.by_source
    for name, part in parts.items():
        with about_source(name):
            if needs_data:
                leave_out = f"; or leave the source out: --config.{SOURCES}{name}.weight=0" if name else ""
                what = f"a file, glob or Hub name{leave_out}"
                require(bool(part.data.files), "data.files", part.data.files, what)
            for check in (_check_model, _check_data, _check_views, _check_loss, _check_teacher):
                check(part)
    idle = {name: idle_keys(part.flat()) for name, part in parts.items()}
    everywhere = set.intersection(*map(set, idle.values()))
    for name, part in parts.items():
        for key in idle[name]:
            if key in everywhere or key in OF_SOURCES:
                with about_source(name):
                    raise UserError(idle_message(key, part.flat()))


def require(ok: bool, name: str, value: Any, limit: str, example: Any = None) -> None:
    """Raise UserError, with the limit and a value that works, unless ok."""
    if not ok:
        example = KEYS[name].example if example is None else example
        raise UserError(f"{name} = {value!r}: must be {limit}.\nFor example --config.{name}={example}")


def _check_sources(config: Config) -> None:
    """Require that sources, if there are any, can be mixed, and that all that is said of mixing has an effect."""
    data, parts = config.data, list(config.by_source.values())
    if not config.sources:
        for name in ("mixing", "mixing_temperature"):
            if getattr(data, name) != KEYS[f"data.{name}"].default:
                raise UserError(
                    f"data.{name} = {getattr(data, name)!r} has no effect without {SOURCES}NAME: there is one source "
                    f"of data.\nLeave it out (--config.data.{name}={KEYS[f'data.{name}'].default}), or add sources to "
                    "the recipe, as configs/mixture.py does."
                )
        return
    if not parts:
        named = ", ".join(f"{SOURCES}{source.name}.weight" for source in config.sources)
        raise UserError(
            f"The weights of all sources are 0 ({named}), so there is nothing to train on.\nGive at least one a "
            f"weight: --config.{SOURCES}{config.sources[0].name}.weight=1"
        )
    values, of_parts = config.flat(), [part.flat() for part in parts]
    for key in ("data.files", "data.positive", "objective.loss"):
        value, default = values[key], KEYS[key].default
        if value != default and all(own[key] != value for own in of_parts):
            field = key.partition(".")[2]
            raise UserError(
                f"{key} = {value!r} has no effect: every source has its own ({SOURCES}NAME.{field}).\nLeave it out: "
                f"--config.{key}={default}"
            )
    _check_losses(config)
    positives = {name: part.data.positive for name, part in config.by_source.items()}
    for name, positive in positives.items():
        if POSITIVES[positive].predicted:
            raise UserError(
                f"{SOURCES}{name}.positive = {positive!r} is not for mixtures: its model would change the texts of all "
                f"sources.\nUse --config.{SOURCES}{name}.positive=word_deletion, for example, or train on this source "
                "alone."
            )
    if config.model.same_mask and {*positives.values()} != {"dropout"}:
        name = next(name for name, positive in positives.items() if positive != "dropout")
        raise UserError(
            "model.same_mask = True needs sentences that are encoded twice, and the texts of "
            f"{SOURCES}{name}.positive = {positives[name]!r} are not.\nUse --config.model.same_mask=False."
        )


def _check_losses(config: Config) -> None:
    """Require that the losses of sources can take turns in one run."""
    objective = config.objective
    other = next((source for source in config.sources if source.loss != objective.loss and source.weight), None)
    if other is None:
        return
    key = f"{SOURCES}{other.name}.loss"
    if NO_LOSS in config.by_loss:
        raise UserError(
            f"{key} = {other.loss!r} with objective.loss = {objective.loss!r}: with {NO_LOSS!r} nothing is compared, "
            "in any source.\nUse it for all of them, or for none."
        )
    if config.data.mixing != "batch":
        raise UserError(
            f"{key} = {other.loss!r} and objective.loss = {objective.loss!r} are of whole batches, and with "
            f"data.mixing = {config.data.mixing!r} a batch is of several sources.\nUse --config.data.mixing=batch, or "
            "one loss."
        )
    for name, neutral in (("learned_temperature", False), ("queue", 0)):
        if getattr(objective, name) != neutral:
            raise UserError(
                f"objective.{name} = {getattr(objective, name)!r} is kept from step to step, and {key} = "
                f"{other.loss!r} would not keep it.\nUse --config.objective.{name}={neutral}, or one loss."
            )


def _check_model(config: Config) -> None:
    model = config.model
    if model.pooler == "cls" and model.train_pooler != "cls":
        raise UserError(
            f"model.pooler = 'cls' evaluates through a head that model.train_pooler = {model.train_pooler!r} never "
            "trains.\nUse --config.model.train_pooler=cls, or another model.pooler."
        )
    try:
        _ = model.kept_layers
    except ValueError:
        limit = "comma-separated numbers of layers from 0, ascending, each once"
        require(False, "model.keep_layers", model.keep_layers, limit)
    if model.init == "pretrained":
        require(bool(model.name), "model.name", model.name, "a folder or Hub name")
    if model.lora and model.init == "random":
        raise UserError(
            f"model.lora = {model.lora} with model.init = 'random' would freeze random weights.\nStart from a model, "
            "--config.model.init=pretrained, or train all parameters: --config.model.lora=0."
        )
    if model.lora and config.optimizer.name == "muon":
        raise UserError(
            f"optimizer.name = 'muon' makes updates of the layers' kernels orthogonal, and model.lora = {model.lora} "
            "trains none of them.\nUse --config.optimizer.name=adamw, or --config.model.lora=0."
        )
    if model.tokenizer == "train":
        require(model.init == "random", "model.init", model.init, "random when model.tokenizer = 'train'", "random")
        require(model.vocab_size >= 100, "model.vocab_size", model.vocab_size, "at least 100 to train a tokenizer")
    elif not model.name and not model.tokenizer:
        raise UserError(
            "model.name and model.tokenizer are both empty, so there is no tokenizer.\nGive a folder with "
            "--config.model.tokenizer=DIR, or --config.model.tokenizer=train --config.model.vocab_size=8000."
        )


def _check_data(config: Config) -> None:
    data, model = config.data, config.model
    parse_prompts(data.prompts)
    if config.objective.loss == NO_LOSS:
        if data.positive not in ("dropout", "columns"):
            raise UserError(
                f"data.positive = {data.positive!r} has no effect with objective.loss = {NO_LOSS!r}: nothing is "
                "compared.\nUse --config.data.positive=dropout"
            )
        return
    _check_scores(config)
    predicted = POSITIVES[data.positive].predicted
    if data.positive == "crop" or predicted:
        require(data.rate > 0, "data.rate", data.rate, f"above 0 with data.positive = {data.positive!r}")
    if predicted and model.init != "pretrained" and not data.mask_model:
        raise UserError(
            f"data.positive = {data.positive!r} lets the pretrained model predict tokens, and random weights predict "
            "nothing.\nStart from a pretrained model, or name one with the same tokenizer: "
            "--config.data.mask_model=DIR."
        )


def _check_scores(config: Config) -> None:
    data, loss = config.data, config.objective.loss
    if loss not in graded_losses():
        return
    require(bool(data.scores), "data.scores", data.scores, f"a column of scores with objective.loss = {loss!r}")
    require(
        data.positive == "columns", "data.positive", data.positive, f"columns with objective.loss = {loss!r}", "columns"
    )
    try:
        _ = data.limits
    except ValueError:
        require(False, "data.score_range", data.score_range, "LOWEST,HIGHEST, two numbers, the lower one first")


def _check_views(config: Config) -> None:
    """Require that something tells the two views of one sentence apart."""
    model = config.model
    if model.same_mask and model.cutoff:
        raise UserError(
            f"model.same_mask = True gives both views the same noise, so model.cutoff = {model.cutoff!r} would cut the "
            "same of both.\nUse one of them: --config.model.cutoff= or --config.model.same_mask=False."
        )
    encodes_twice = config.data.positive == "dropout" and config.objective.loss != NO_LOSS
    if encodes_twice and not (model.dropout or model.cutoff or model.same_mask):
        raise UserError(
            "model.dropout = 0 with data.positive = 'dropout': both views of a sentence would be the same vector.\n"
            "Use --config.model.dropout=0.1, pairs with --config.data.positive=columns, or, if this is what you want "
            "to study, --config.model.same_mask=True."
        )


def _check_loss(config: Config) -> None:
    objective = config.objective
    for name, value in (("widths", objective.widths), ("layers", objective.layers)):
        try:
            numbers = parse_numbers(value)
        except ValueError:
            numbers = (0,)
        is_right = all(number > 0 for number in numbers) and len(set(numbers)) == len(numbers)
        require(is_right, f"objective.{name}", value, "comma-separated numbers above 0, each once")
    kind, margin = objective.false_negatives, objective.false_negative_margin
    leaves_some = {"absolute": abs(margin) < 2, "fixed": -1 < margin <= 1}.get(kind, True)
    limit = f"between {'-2 and 2' if kind == 'absolute' else '-1 and 1'} with objective.false_negatives = {kind!r}"
    require(leaves_some, "objective.false_negative_margin", margin, f"{limit}, or it leaves out all negatives or none")
    if objective.layers and objective.queue:
        raise UserError(
            f"objective.layers = {objective.layers!r}, and the queue (objective.queue = {objective.queue}) holds "
            "vectors of the last layer alone.\n"
            "Use one of them: --config.objective.layers= or --config.objective.queue=0."
        )
    if objective.loss == NO_LOSS and not config.mlm.weight and not config.teacher.name:
        raise UserError(
            f"objective.loss = {NO_LOSS!r} with mlm.weight = 0 and no teacher.name leaves nothing to train.\n"
            "Use --config.mlm.weight=1, a teacher, or --config.objective.loss=info_nce."
        )
    if objective.loss == NO_LOSS and not config.teacher.name and config.model.has_head:
        raise UserError(
            f"objective.loss = {NO_LOSS!r} never trains the head of the pooler 'cls'.\n"
            "Use --config.model.pooler=avg --config.model.train_pooler=avg."
        )


def _check_teacher(config: Config) -> None:
    objective = config.objective
    if objective.guide and objective.queue:
        raise UserError(
            f"objective.guide = True with objective.queue = {objective.queue}: the teacher's vectors of queued texts "
            "are not kept.\nUse --config.objective.queue=0, or leave the guide out: --config.objective.guide=False."
        )
    if config.teacher.name and not config.teacher.weights and not objective.guide:
        raise UserError(
            f"teacher.name = {config.teacher.name!r} has no effect with teacher.{' = teacher.'.join(DISTILLATIONS)} = "
            "0 and objective.guide = False.\nGive a loss a weight, for example --config.teacher.kl=1, or leave the "
            "teacher out: "
            "--config.teacher.name="
        )
    pairs = [name for name in NEED_PAIRS if name in config.teacher.weights]
    if pairs and objective.loss == NO_LOSS and config.data.positive != "columns":
        raise UserError(
            f"teacher.{pairs[0]} compares sentences with their positives, and with objective.loss = {NO_LOSS!r} and "
            f"data.positive = {config.data.positive!r} there are none.\nUse --config.data.positive=columns."
        )
    if config.teacher.name.endswith(".parquet") and config.teacher.products != "float32":
        raise UserError(
            f"teacher.products = {config.teacher.products!r} has no effect with vectors of a file, "
            f"{config.teacher.name!r}.\nUse --config.teacher.products=float32."
        )
