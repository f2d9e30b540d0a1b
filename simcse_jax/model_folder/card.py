"""Write the README.md of an exported model: what it is, how it was made, how good it is, how to use it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simcse_jax import __version__
from simcse_jax.config.sources import source_values
from simcse_jax.data.sources import hub_data_set
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.table import FAMILIES
from simcse_jax.encoder.pooling import AVERAGED_LAYERS, parts_of, width_of
from simcse_jax.model_folder.after_pooling import Dense, Normalize, Step, width_after
from simcse_jax.model_folder.card_scores import dev_scores, model_index
from simcse_jax.model_folder.text_settings import TextSettings

_TAGS = ("sentence-transformers", "feature-extraction", "sentence-similarity", "jax")
_POOLERS = {
    "cls": "the first token through the trained head (dense + tanh)",
    "cls_before_pooler": "the first token of the last layer, before the head",
    "avg": "the mean over the tokens of the last layer",
    "avg_top2": "the mean over the tokens of the last two layers",
    "avg_first_last": "the mean over the tokens of the first and the last layer",
    "avg_embedding_last": "the mean over the tokens of the embedding layer and the last layer",
    "max": "the largest entry of each feature over the tokens",
    "mean_sqrt_len": "the sum over the tokens, divided by the root of their number",
    "weighted_mean": "the mean over the tokens with weights 1, 2, 3 ...",
    "last_token": "the last token",
}
# The same for PyTorch, of hidden [texts, tokens, D] and mask [texts, tokens, 1]; other poolers are means.
_IN_TORCH = {
    "cls_before_pooler": "hidden[:, 0]",
    "max": 'hidden.masked_fill(mask == 0, float("-inf")).amax(1)',
    "mean_sqrt_len": "(hidden * mask).sum(1) / mask.sum(1).sqrt()",
    "weighted_mean": "(hidden * mask.cumsum(1) * mask).sum(1) / (mask.cumsum(1) * mask).sum(1)",
    "last_token": "hidden[range(len(hidden)), mask.sum((1, 2)) - 1]",
}

_LAYERS = "{} of the model that it is made of, numbered from 0; the others are left out"
_ADAPTERS = (
    "LoRA of rank {rank} over `{base}`, as `adapter_config.json` has it; readers need `peft` (`pip install peft`)"
)
_LOCAL = "; that is a folder of the machine that wrote this: where it is elsewhere, change `base_model_name_or_path`"
# Families whose first releases were remote code, and that transformers itself has had since its release 5 only.
_RECENT = ("nomic_bert", "gte")
_ONLY_RECENT = (
    "Only a recent transformers 5 (5.24, say) reads this folder: neither release 4 nor the remote code of the model's "
    "publishers does.\n\n"
)


def model_card(
    name: str,
    architecture: Architecture,
    pooler: str,
    train_pooler: str,
    has_head: bool,
    card: Mapping[str, Any],
    texts: TextSettings,
    steps: Sequence[Step] = (),
) -> str:
    """Return the text of a model card, with its YAML front matter.

    name: the folder in the usage examples. card: any of "recipe" (mapping of keys to values), "defaults" (values of
    keys that need not be shown), "data" (mapping or text), "scores" (mapping of names to numbers, times 100),
    "step", "tasks" (a list of `CardScore`), "license" (as the Hub names it), "adapters" ("rank" and "base", the
    model that they adapt, where the folder holds these alone), "layers" (the numbers of those that were kept, where
    others were left out), and "source", the name of the model that this one is a copy of, if it was not trained
    here. Missing entries are left out. texts: with
    max_seq_length, at which texts are cut. steps: what follows the pooler.
    """
    recipe, data, scores = card.get("recipe") or {}, card.get("data") or {}, card.get("scores") or {}
    teacher, contrasts = str(recipe.get("teacher.name") or ""), recipe.get("objective.loss") != "none"
    only_mlm = not contrasts and not teacher
    task = "fill-mask" if only_mlm else "simcse" if contrasts else "distillation"
    origin = _masked(name, recipe) if only_mlm else _origin(card.get("source"), teacher, contrasts)
    width = width_after(steps, width_of(pooler, architecture.hidden_size))
    facts = {
        **({"adapters": _adapters(**card["adapters"])} if card.get("adapters") else {}),
        "architecture": f"{architecture.family}, {architecture.num_hidden_layers} layers, "
        f"width {architecture.hidden_size}",
        **({"layers": _LAYERS.format(", ".join(map(str, card["layers"])))} if card.get("layers") else {}),
        "longest text": f"{texts.max_seq_length} tokens",
        "pooler": f"`{pooler}`: {', beside it '.join(_described(pooler))}",
        **({"after the pooler": ", ".join(map(_step, steps))} if steps else {}),
        "pooler in training": f"`{train_pooler}`",
        "pooling head": _head(architecture, pooler, has_head),
    }
    sections = [
        _front_matter(name, recipe, task, scores, card),
        f"# {name}\n\n{origin} A sentence becomes a vector of {width} numbers; compare vectors by cosine.",
        _table(facts),
        "## Use\n\n" + _usage(name, architecture, texts, pooler, steps),
    ]
    if scores:
        at = f" (step {card['step']})" if "step" in card else ""
        text = "\n\nCorrelations are times 100. One seed says little: SimCSE's vary by about a point between seeds."
        sections.append(f"## Scores{at}\n\n{_table(scores)}{text if 'spearman' in scores else ''}")
    if tasks := card.get("tasks"):
        sections.append("## Evaluation\n\n" + _table({each.task: f"{each.value:.2f}" for each in tasks}))
    if data:
        sections.append("## Data\n\n" + (_table(data) if isinstance(data, Mapping) else str(data)))
    if recipe:
        defaults = card.get("defaults") or {}
        shown = {key: value for key, value in recipe.items() if key not in defaults or value != defaults[key]}
        rest = f"\n\nOther keys had the defaults of simcse_jax {__version__}; config.json of the run folder has all."
        sections.append("## Recipe\n\n" + _table(shown) + (rest if defaults else ""))
    return "\n\n".join(sections) + "\n"


def _head(architecture: Architecture, pooler: str, has_head: bool) -> str:
    """Return in words whether there is a head on the first token, and where."""
    place = FAMILIES[architecture.family].names.head
    if not has_head:
        return "none, and these vectors use none" + (f": `{place}` holds zeros" if place else "")
    if place:
        return f"trained, as `{place}`"
    where = "in the Dense module after Pooling" if pooler == "cls" else "but left out: these vectors use none"
    return f"trained, {where} (transformers' class has no place for it)"


def _described(pooler: str) -> list[str]:
    """Return in words what each part of a pooler does."""
    weighed = " (of a weighted mean of all hidden states)"
    return [_POOLERS[part.name] + (weighed if part.weights else "") for part in parts_of(pooler)]


def _step(step: Step) -> str:
    if isinstance(step, Dense):
        return f"Dense ({step.kernel.shape[0]} to {step.kernel.shape[1]}, {step.activation})"
    return type(step).__name__


def _adapters(rank: int, base: str) -> str:
    return _ADAPTERS.format(rank=rank, base=base) + (_LOCAL if Path(base).is_absolute() else "")


def _origin(source: str | None, teacher: str, contrasts: bool) -> str:
    if teacher:
        simcse = " with [SimCSE](https://arxiv.org/abs/2104.08821)," * contrasts
        by = f"trained{simcse} to be like those of {f'`{teacher}`' if _is_hub_name(teacher) else 'another model'}, by"
    elif source is None:
        by = "trained with [SimCSE](https://arxiv.org/abs/2104.08821) by"
    else:
        by = f"of {f'`{source}`' if _is_hub_name(source) else 'a model trained elsewhere'}, written by"
    return f"Sentence embeddings {by} simcse_jax {__version__}."


def _masked(name: str, recipe: Mapping[str, Any]) -> str:
    simcse = simcse_recipe(str(recipe.get("model.init")))
    return (
        f"Masked language modelling alone, by simcse_jax {__version__}: no good sentence encoder by itself, but one to "
        "train further, with [SimCSE](https://arxiv.org/abs/2104.08821) for example "
        f"(`python -m simcse_jax.train --config={simcse} --config.model.name={name}`). Its head for predicting "
        "tokens is in it: `AutoModelForMaskedLM` of transformers reads it."
    )


def simcse_recipe(init: str) -> str:
    """Return the SimCSE recipe to continue with after masked language modelling; init: as model.init."""
    return "configs/small.py" if init == "random" else "configs/unsup.py"


def _front_matter(
    name: str, recipe: Mapping[str, Any], task: str, scores: Mapping[str, Any], card: Mapping[str, Any]
) -> str:
    import yaml

    tags = "\n".join(f"- {tag}" for tag in (*_TAGS, task))
    text = f"---\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\ntags:\n{tags}\n"
    base = str(recipe.get("model.name") or "")
    if _is_hub_name(base) and recipe.get("model.init", "pretrained") == "pretrained":
        text += f"base_model: {base}\n"
    more: dict[str, Any] = {"license": card["license"]} if card.get("license") else {}
    files = [recipe.get("data.files") or "", *source_values(recipe, "files").values()]
    if data := list(filter(None, map(hub_data_set, ",".join(files).split(",")))):
        more["datasets"] = list(dict.fromkeys(data))
    judged = [*dev_scores(str(scores.get("data") or "").split(", ")[0], scores), *(card.get("tasks") or ())]
    if judged:
        more |= model_index(name, judged)
    return text + (yaml.safe_dump(more, sort_keys=False, allow_unicode=True) if more else "") + "---"


def _is_hub_name(name: str) -> bool:
    """Return whether a model's name is one of the Hub; a local path must not be published, and the Hub refuses it."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists() and not ("/" in name and Path(name).parent.exists())


def example(prompt: str) -> str:
    """Return a line of Python that makes `sentences`, each with the prompt before it."""
    texts = [prompt + text for text in ("A man plays the guitar.", "Someone is making music.")]
    return f"sentences = {json.dumps(texts, ensure_ascii=False)}"


def _usage(name: str, architecture: Architecture, texts: TextSettings, pooler: str, steps: Sequence[Step]) -> str:
    family = FAMILIES[architecture.family]
    text = _ONLY_RECENT if family.name in _RECENT else ""
    text += f"""With sentence-transformers:

```python
from sentence_transformers import SentenceTransformer

{example("")}
model = SentenceTransformer("{name}")
embeddings = model.encode(sentences)
```
"""
    head_apart = pooler == "cls" and not family.names.head
    if head_apart or not texts.include_prompt or any(not isinstance(step, Normalize) for step in steps):
        return text.rstrip()  # transformers alone runs no modules after pooling
    normalized = "\n    embeddings = torch.nn.functional.normalize(embeddings)" if steps else ""
    return f"""{text}
With transformers:

```python
import torch
from transformers import AutoModel, AutoTokenizer

{example(texts.prompt)}
tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}")
batch = tokenizer(sentences, padding=True, truncation=True, max_length={texts.max_seq_length}, return_tensors="pt")
with torch.no_grad():
{_pooled_in_torch(pooler)}{normalized}
```"""


def _pooled_in_torch(pooler: str) -> str:
    """Return lines that run `model` on `batch` and make `embeddings`."""
    if pooler in ("cls", "cls_before_pooler"):
        output = "pooler_output" if pooler == "cls" else "last_hidden_state[:, 0]"
        return f"    embeddings = model(**batch).{output}"
    first, *_ = parts = parts_of(pooler)  # which read the same layers, if a folder holds them
    if first.weights:
        hidden = f"sum(weight * state for weight, state in zip({list(first.weights)}, states))"
    else:
        averaged = AVERAGED_LAYERS.get(first.name, (-1,))
        layers = " + ".join(f"states[{layer}]" for layer in averaged)
        hidden = layers if len(averaged) == 1 else f"({layers}) / {len(averaged)}"
    pooled = [_IN_TORCH.get(part.name, "(hidden * mask).sum(1) / mask.sum(1)") for part in parts]
    return f"""    states = model(**batch, output_hidden_states=True).hidden_states
    hidden = {hidden}
    mask = batch["attention_mask"].unsqueeze(-1)
    embeddings = {pooled[0] if len(pooled) == 1 else f"torch.cat([{', '.join(pooled)}], -1)"}"""


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows.items())])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:.6g}"
    elif isinstance(value, list | tuple):
        value = ", ".join(str(entry) for entry in value)
    return str(value).replace("|", "\\|").replace("\n", " ")
