"""RoBERTa and XLM-RoBERTa: BERT's layers, with positions that start after the padding id.

CamemBERT is RoBERTa under another model_type.
"""

from __future__ import annotations

import dataclasses
import functools

from simcse_jax.encoder.families import bert
from simcse_jax.encoder.families.family import Family

NAMES = dataclasses.replace(
    bert.NAMES,
    prefix="roberta.",
    mlm_dense="lm_head.dense",
    mlm_norm="lm_head.layer_norm",
    mlm_output="lm_head",
    mlm_decoder="lm_head.decoder",
    task_heads=("lm_head.", "classifier.", "qa_outputs.", "pooler."),
)


def _family(name: str, model_types: tuple[str, ...], model_class: str) -> Family:
    return Family(
        name,
        model_types,
        model_class,
        positions_after_padding=True,
        names=NAMES,
        read=functools.partial(bert.read, family=name, pad_token_id=1),
        write=bert.write,
    )


ROBERTA = _family("roberta", ("roberta", "camembert"), "RobertaModel")
XLM_ROBERTA = _family("xlm-roberta", ("xlm-roberta",), "XLMRobertaModel")
