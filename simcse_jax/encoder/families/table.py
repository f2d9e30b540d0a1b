"""List the families, and find the one that a model folder or a run folder belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.albert import ALBERT
from simcse_jax.encoder.families.bert import BERT
from simcse_jax.encoder.families.deberta_v2 import DEBERTA_V2
from simcse_jax.encoder.families.distilbert import DISTILBERT
from simcse_jax.encoder.families.electra import ELECTRA
from simcse_jax.encoder.families.family import ConfigFile, Family
from simcse_jax.encoder.families.modernbert import MODERNBERT
from simcse_jax.encoder.families.mpnet import MPNET
from simcse_jax.encoder.families.roberta import ROBERTA, XLM_ROBERTA
from simcse_jax.encoder.families.rotary_bert import GTE, NOMIC_BERT
from simcse_jax.system.errors import UserError

_LISTED = (
    *(BERT, ROBERTA, XLM_ROBERTA, DISTILBERT, ELECTRA),
    *(ALBERT, MPNET, DEBERTA_V2, MODERNBERT, NOMIC_BERT, GTE),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _LISTED}


def read_architecture(folder: str | Path) -> Architecture:
    """Return the architecture of the model in a Hugging Face folder.

    Raises UserError for a missing or malformed config.json, another architecture, a setting that is not supported, and
    missing or impossible sizes.
    """
    file = ConfigFile(Path(folder) / "config.json")
    family = _family_of(file)
    found = family.complete(family.read(file))
    if found.max_length < 1:
        raise UserError(
            f"{file.path}: max_position_embeddings = {found.max_position_embeddings} leaves no position after the "
            f"first {found.position_offset}, which {family.name} reserves.\nCopy it again from the model's source."
        )
    return found


def config_json(architecture: Architecture, has_mlm_head: bool = False) -> dict[str, Any]:
    """Return the content of a config.json that transformers and `read_architecture` read.

    has_mlm_head: whether the weights are those of the class for masked language modelling.
    """
    family = FAMILIES[architecture.family]
    name = family.model_class.removesuffix("Model") + ("ForMaskedLM" if has_mlm_head else "Model")
    # dtype: of the computation, whatever the weights are stored as
    common = {"architectures": [name], "dtype": "float32", "model_type": family.model_types[0]}
    return dict(sorted((common | family.write(architecture)).items()))


def architecture_from_dict(fields: Mapping[str, Any]) -> Architecture:
    """Return the architecture that a run folder stores (`Architecture.as_dict`)."""
    # JSON holds tuples as lists.
    given: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
    architecture = Architecture(**given)
    return FAMILIES[architecture.family].complete(architecture)


def _family_of(file: ConfigFile) -> Family:
    by_type = {model_type: family for family in FAMILIES.values() for model_type in family.model_types}
    supported = f"Supported model_type: {', '.join(by_type)} (MiniLM and most national BERTs are one of these)."
    kind, classes = file.content.get("model_type"), file.content.get("architectures")
    if kind is None and classes is None:
        raise UserError(f'{file.path} has no model_type.\n{supported}\nIf it is a BERT, add "model_type": "bert".')
    if isinstance(kind, str) and kind in by_type:
        return by_type[kind]
    if kind is None:  # files of the first releases name the class only
        names = [str(name) for name in classes] if isinstance(classes, list) else []
        found = [family for family in FAMILIES.values() if any(_is_class_of(family, name) for name in names)]
        if len(found) == 1:
            return found[0]
    which = f"model_type = {kind!r}" if kind is not None else f"architectures = {classes!r}"
    raise UserError(f"{file.path}: {which} is another architecture.\n{supported}")


def _is_class_of(family: Family, name: str) -> bool:
    return name == family.model_class or name.startswith(family.model_class.removesuffix("Model") + "For")
