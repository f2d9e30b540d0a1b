"""Make the batches of a run, and put them onto the devices: each process makes the groups of its own devices only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from simcse_jax.config.keys import split_list
from simcse_jax.config.layout import row_length
from simcse_jax.config.schema import Config
from simcse_jax.config.sources import about_source
from simcse_jax.data.batches import Batch, Batches, EncoderInputs, Layout, Rows
from simcse_jax.data.corpus import Corpus, load_corpus, read_sentences
from simcse_jax.data.examples import ColumnExamples, Examples, WithPrompts
from simcse_jax.data.held_out import leave_out
from simcse_jax.data.masking import Masking, prediction_slots
from simcse_jax.data.mixture import MixedExamples, MixedOrder, SameTwice, shares
from simcse_jax.data.positives import POSITIVES, Source, views_of
from simcse_jax.data.prompts import parse_prompts, prompt_length
from simcse_jax.data.scores import ScoreColumn
from simcse_jax.data.text_vectors import TextVectors
from simcse_jax.data.vocabulary import require_mask_token, vocabulary_of
from simcse_jax.group import Group, MaskedGroup
from simcse_jax.objective.distillation import NEED_PAIRS
from simcse_jax.objective.losses import graded_losses
from simcse_jax.system.errors import UserError, about
from simcse_jax.training.mesh import over_groups, place, replicated


def batch_shardings(mesh: Mesh) -> Batch:
    """Return the sharding of each field of a batch: the ids of texts are on every device, all else by groups."""
    by_group: Any = over_groups(mesh)
    return Batch(inputs=by_group, text_ids=replicated(mesh), teacher=by_group, grades=by_group)


def batch_shapes(
    config: Config, mesh: Mesh, columns: int, rows: Rows, row_length: int, teacher_width: int = 0
) -> Batch:
    """Return ShapeDtypeStructs of a batch with V = `columns` texts an example, and `rows` rows a group.

    Two row counts stand for separate anchors. teacher_width: of the teacher's vectors, 0 without one.
    """
    by_group = over_groups(mesh)
    groups, examples = config.train.batch_size // config.group_size, config.train.batch_size

    def of_groups(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((groups, *shape), np.int32, sharding=by_group)

    def group(rows: int, columns: int) -> Group:
        tokens, slots = of_groups(rows, row_length), of_groups(columns * config.group_size)
        return Group(tokens, tokens, tokens, tokens, slots, slots)

    def copy(rate: float, whole_word: bool = False) -> MaskedGroup:
        places = of_groups(prediction_slots(rate, sum(rows), row_length, columns * config.group_size, whole_word))
        return MaskedGroup(of_groups(sum(rows), row_length), places, places)

    replaces = config.objective.loss != "none" and POSITIVES[config.data.positive].predicted
    separate = len(rows) > 1
    inputs = EncoderInputs(
        groups=group(rows[0], 1 if separate else columns),
        masked=copy(config.mlm.rate, config.mlm.whole_word) if config.mlm.weight else None,
        replacement=copy(config.data.rate) if replaces else None,
        non_anchors=group(rows[1], columns - 1) if separate else None,
    )
    text_ids = jax.ShapeDtypeStruct((max(columns, 2), examples), np.int32, sharding=replicated(mesh))
    teacher, grades = (
        jax.ShapeDtypeStruct((groups, *shape), np.float32, sharding=by_group) if is_used else None
        for shape, is_used in (
            ((columns, config.group_size, teacher_width), teacher_width > 0),
            ((config.group_size,), bool(config.data.scores)),
        )
    )
    return Batch(inputs, text_ids, teacher, grades)


def own_groups(mesh: Mesh, groups: int) -> list[int]:
    """Return which of a batch's groups lie on this process's devices, ascending."""
    spans = over_groups(mesh).addressable_devices_indices_map((groups,)).values()
    return sorted({n for span in spans if span for n in range(*span[0].indices(groups))})


def feed(batches: Batches, mesh: Mesh, first_step: int, last_step: int) -> Iterator[Batch]:
    """Yield the batches of steps first_step <= step < last_step as global arrays, made ahead in background threads."""
    groups = batches.layout.batch_size // batches.layout.group_size
    own = own_groups(mesh, groups)
    for batch in batches.stream(first_step, last_step, own):
        yield place_batch(batch, own, groups, mesh)


def place_batch(batch: Batch, own: list[int], groups: int, mesh: Mesh) -> Batch:
    """Return a global batch of `groups` groups, of which `batch` holds those that `own` lists."""
    first_at = {group: at for at, group in enumerate(own)}

    def spread(x: np.ndarray, sharding: Any) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            span = range(*index[0].indices(groups))
            return x[first_at[span.start] :][: len(span)]  # a device's groups are neighbours, so they are here too

        return jax.make_array_from_callback((groups, *x.shape[1:]), sharding, part)

    def put(sharding: NamedSharding, field: Any) -> Any:
        of_array = place if sharding == replicated(mesh) else spread
        return jax.tree.map(lambda x: of_array(x, sharding), field)

    fields: Any = zip(batch_shardings(mesh), batch, strict=True)
    return Batch(*(put(sharding, field) for sharding, field in fields))


Corpora = Mapping[str, Corpus]  # by the name of their source; "" where the recipe names no sources


def load_data(config: Config, tokenizer: Any, held_out: Sequence[str] = ()) -> dict[str, Corpus]:
    """Return the tokenised training data of each source; held_out: texts that are not trained on."""
    found = {}
    for name, part in config.by_source.items():
        with about_source(name), about("data.files", "files of text"):
            corpus = load_texts(part, part.data.files, tokenizer)
            found[name] = leave_out(corpus, held_out) if held_out else corpus
    return found


def make_batches(
    config: Config, tokenizer: Any, corpora: Corpora, vectors: TextVectors | None = None
) -> tuple[int, Batches]:
    """Return the number of times that each text of the data is encoded, and the batches of a run on it.

    vectors: the teacher's, of all texts.
    """
    seed = config.train.seed
    made = {}
    for name, part in config.by_source.items():
        with about_source(name):
            made[name] = _make_examples(part, tokenizer, corpora[name])
    views = min(views for views, _ in made.values())
    # Where others have two texts, a text that is encoded twice is two equal ones.
    each = {name: SameTwice(examples) if own > views else examples for name, (own, examples) in made.items()}
    examples, order = next(iter(each.values())), None
    if config.sources:
        order = _mixed_order(config, {name: len(own) for name, own in each.items()})
        examples = MixedExamples(list(each.values()), list(order.shares.values()))
    if config.objective.loss != "none":
        _require_hard_negatives(config, examples.texts)
    masking = make_masking(config, tokenizer, seed)
    replacing = _make_replacing(config, tokenizer) if views else None
    layout = dataclasses.replace(make_layout(config), separate_anchors=has_separate_anchors(config, views))
    return views, Batches(examples, layout, seed, masking, replacing, config.objective.queue > 0, vectors, order)


def _make_examples(config: Config, tokenizer: Any, corpus: Corpus) -> tuple[int, Examples]:
    """Return the number of times that each text of a corpus is encoded, and its examples."""
    views, examples = 1 if config.teacher.name else 0, ColumnExamples(corpus)
    if config.objective.loss != "none":
        views = views_of(config.data.positive, corpus.columns, corpus.report.ignored_columns)
        source = Source(corpus, tokenizer, config.train.seed)
        examples = POSITIVES[config.data.positive].make_examples(source, dataclasses.asdict(config.data))
    _require_pairs(config, corpus)
    unpooled = _unpooled(config, tokenizer, examples.texts)
    return views, WithPrompts(examples, unpooled) if any(unpooled) else examples


def _mixed_order(config: Config, rows: Mapping[str, int]) -> MixedOrder:
    """Return the order of a mixture; rows: of each source."""
    weights = {source.name: source.weight for source in config.sources}
    by_rows = shares([weights[name] for name in rows], [*rows.values()], config.data.mixing_temperature)
    return MixedOrder(rows, by_rows, config.train.batch_size, config.train.seed, config.data.mixing == "batch")


def read_texts(config: Config) -> Iterator[str]:
    """Yield all texts of the training data, of one source after another."""
    for name, part in config.by_source.items():
        with about_source(name), about("data.files", "files of text"):
            yield from read_sentences(split_list(part.data.files), columns=split_list(part.data.columns))


def load_texts(config: Config, files: str, tokenizer: Any, split: str = "train") -> Corpus:
    """Return the tokenised texts of these files, of the columns that the recipe names, and of one split.

    Those of the split "train" have scores where the recipe names them.
    """
    data, columns = config.data, split_list(config.data.columns)
    scores = ScoreColumn(data.scores, *data.limits) if data.scores and split == "train" else None
    how: dict[str, Any] = {"split": split, "scores": scores, "prompts": parse_prompts(data.prompts)}
    return load_corpus(split_list(files), tokenizer, data.max_length, columns, data.cache_dir or None, **how)


def _unpooled(config: Config, tokenizer: Any, texts: int) -> list[int]:
    """Return how many first tokens of each of an example's texts are not pooled; [] where all are."""
    prompts = parse_prompts(config.data.prompts)
    if config.data.include_prompt or not prompts:
        return []
    lengths = [prompt_length(tokenizer(prompt)["input_ids"], tokenizer.all_special_ids) for prompt in prompts]
    kept = [length if prompt else 0 for prompt, length in zip(prompts, lengths, strict=True)]
    return [kept[min(text, len(kept) - 1)] for text in range(texts)]


def has_separate_anchors(config: Config, views: int) -> bool:
    """Return whether anchors stand in rows of their own, as two encoders read the texts of an example."""
    return config.model.second_encoder != "none" and views == 1


def _require_hard_negatives(config: Config, texts: int) -> None:
    objective = config.objective
    for key, neutral in (("hard_negative_weight", 1.0), ("hardness_of", "all")):
        value = getattr(objective, key)
        if texts < 3 and value != neutral and value != "batch":
            raise UserError(
                f"objective.{key} = {value!r}, and the data has no hard negatives.\nGive a third column with "
                f"--config.data.positive=columns, or --config.objective.{key}={neutral}."
            )


def _require_pairs(config: Config, corpus: Corpus) -> None:
    """Raise UserError where a loss needs pairs, and the data has other examples."""
    if any(name in config.teacher.weights for name in NEED_PAIRS) and config.data.positive == "columns":
        views_of("columns", corpus.columns, corpus.report.ignored_columns)
    if config.objective.loss in graded_losses() and len(corpus.columns) != 2:
        raise UserError(
            f"objective.loss = {config.objective.loss!r} takes pairs with a score, and the data has "
            f"{len(corpus.columns)} text columns: {', '.join(corpus.columns)}.\nName two: --config.data.columns="
            f"{','.join(corpus.columns[:2])}"
        )


def make_layout(config: Config) -> Layout:
    """Return how a batch is laid out."""
    return Layout(config.train.batch_size, config.group_size, row_length(config.data), not config.data.packed)


def make_masking(config: Config, tokenizer: Any, seed: int) -> Masking | None:
    """Return what masks tokens for masked language modelling, None without it."""
    if not config.mlm.weight:
        return None
    vocabulary = vocabulary_of(tokenizer)
    require_mask_token(vocabulary, f"mlm.weight = {config.mlm.weight}", "--config.mlm.weight=0")
    return Masking(vocabulary, config.mlm.rate, config.mlm.whole_word, seed)


def _make_replacing(config: Config, tokenizer: Any) -> Masking | None:
    """Return what masks the tokens that a predictor replaces in positives, None without one."""
    if not POSITIVES[config.data.positive].predicted:
        return None
    vocabulary = vocabulary_of(tokenizer)
    require_mask_token(vocabulary, f"data.positive = {config.data.positive!r}", "--config.data.positive=dropout")
    return Masking(vocabulary, config.data.rate, whole_word=False, seed=config.train.seed, all_masked=True)
