"""Write the README.md of an exported model: what it is, how it was made, how good it is, how to use it."""

import re
from collections.abc import Mapping
from typing import Any

from simcse_jax import __version__
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.pooling import AVERAGED_LAYERS

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TAGS = ("sentence-transformers", "feature-extraction", "sentence-similarity", "jax")
_POOLERS = {
    "cls": "the first token through the trained head (dense + tanh)",
    "cls_before_pooler": "the first token of the last layer, before the head",
    "avg": "the mean over the tokens of the last layer",
    "avg_top2": "the mean over the tokens of the last two layers",
    "avg_first_last": "the mean over the tokens of the first and the last layer",
    "avg_embedding_last": "the mean over the tokens of the embedding layer and the last layer",
}


def model_card(
    name: str, architecture: Architecture, pooler: str, train_pooler: str, has_head: bool, card: Mapping[str, Any]
) -> str:
    """Return the text of a model card, with its YAML front matter.

    name: the folder in the usage examples. card: any of "recipe" (mapping of keys to values), "data" (mapping or
    text), "scores" (mapping of names to numbers, times 100), "step", and "source", the name of the model that this one
    is a copy of, if it was not trained here. Missing entries are left out.
    """
    recipe, data, scores = card.get("recipe") or {}, card.get("data") or {}, card.get("scores") or {}
    origin = _pretrained(name, recipe) if _only_pretrained(recipe) else f"{_origin(card.get('source'))}."
    sections = [
        _front_matter(recipe),
        f"# {name}\n\n{origin} A sentence becomes a vector of {architecture.hidden_size} numbers; "
        "compare vectors by cosine.",
        _facts(architecture, pooler, train_pooler, has_head),
        "## Use\n\n" + "\n\n".join(_usage(name, architecture, pooler)),
    ]
    if scores:
        at = f" (step {card['step']})" if "step" in card else ""
        text = "\n\nCorrelations are times 100. One seed says little: SimCSE's vary by about a point between seeds."
        sections.append(f"## Scores{at}\n\n{_table(scores)}{text if 'spearman' in scores else ''}")
    if data:
        sections.append("## Data\n\n" + (_table(data) if isinstance(data, Mapping) else str(data)))
    if recipe:
        sections.append("## Recipe\n\n" + _table(recipe))
    return "\n\n".join(sections) + "\n"


def _origin(source: str | None) -> str:
    if source is None:
        by = "trained with [SimCSE](https://arxiv.org/abs/2104.08821) by"
    else:  # nor is a local path shown here
        by = f"of {f'`{source}`' if _HUB_NAME.fullmatch(source) else 'a model trained elsewhere'}, written by"
    return f"Sentence embeddings {by} simcse_jax {__version__}"


def _only_pretrained(recipe: Mapping[str, Any]) -> bool:
    return recipe.get("objective.loss") == "none"


def _pretrained(name: str, recipe: Mapping[str, Any]) -> str:
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


def _front_matter(recipe: Mapping[str, Any]) -> str:
    lines = [
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "tags:",
        *(f"- {tag}" for tag in (*_TAGS, "fill-mask" if _only_pretrained(recipe) else "simcse")),
    ]
    base = str(recipe.get("model.name") or "")
    # The Hub refuses a base_model that is not a Hub name, and a local path must not be published.
    if _HUB_NAME.fullmatch(base) and recipe.get("model.init", "pretrained") == "pretrained":
        lines.append(f"base_model: {base}")
    return "\n".join(["---", *lines, "---"])


def _facts(architecture: Architecture, pooler: str, train_pooler: str, has_head: bool) -> str:
    facts = {
        "architecture": f"{architecture.family}, {architecture.num_hidden_layers} layers, "
        f"width {architecture.hidden_size}",
        "longest text": f"{architecture.max_length} tokens",
        "pooler": f"`{pooler}`: {_POOLERS[pooler]}",
        "pooler in training": f"`{train_pooler}`",
        "pooling head": "trained, as `pooler.dense`"
        if has_head
        else "none: the `pooler_output` of transformers is random",
    }
    return _table(facts)


def _usage(name: str, architecture: Architecture, pooler: str) -> list[str]:
    sentences = 'sentences = ["A man plays the guitar.", "Someone is making music."]'
    return [
        f"""With sentence-transformers:

```python
from sentence_transformers import SentenceTransformer

{sentences}
model = SentenceTransformer("{name}")
embeddings = model.encode(sentences)
```""",
        f"""With transformers:

```python
import torch
from transformers import AutoModel, AutoTokenizer

{sentences}
tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}")
batch = tokenizer(sentences, padding=True, truncation=True, max_length={architecture.max_length}, return_tensors="pt")
with torch.no_grad():
{_torch_pooling(pooler)}
```""",
    ]


def _torch_pooling(pooler: str) -> str:
    averaged = AVERAGED_LAYERS.get(pooler, ())
    if not averaged:
        output = "pooler_output" if pooler == "cls" else "last_hidden_state[:, 0]"
        return f"    embeddings = model(**batch).{output}"
    layers = " + ".join(f"states[{layer}]" for layer in averaged)
    return "\n".join(
        [
            "    states = model(**batch, output_hidden_states=True).hidden_states",
            f"    hidden = ({layers}) / {len(averaged)}",
            '    mask = batch["attention_mask"].unsqueeze(-1)',
            "    embeddings = (hidden * mask).sum(1) / mask.sum(1)",
        ]
    )


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows.items())])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:.6g}"
    elif isinstance(value, list | tuple):
        value = ", ".join(str(entry) for entry in value)
    return str(value).replace("|", "\\|").replace("\n", " ")
