"""Add onnx/model.onnx and onnx/model_int8.onnx to an exported folder (the extra [onnx]).

To run them takes ONNX Runtime and the folder's tokenizer.json, and neither JAX nor PyTorch nor transformers.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.encoder.families.table import read_architecture
from simcse_jax.model_folder.after_pooling import Step
from simcse_jax.model_folder.card import example
from simcse_jax.model_folder.onnx_graph import encoder_graph
from simcse_jax.model_folder.pretrained import load_params
from simcse_jax.model_folder.text_settings import SETTINGS, TextSettings
from simcse_jax.system.errors import UserError

if TYPE_CHECKING:
    import onnx
    from transformers import PreTrainedTokenizerFast

FOLDER, MODEL, MODEL_INT8 = "onnx", "model.onnx", "model_int8.onnx"  # transformers.js and others look for these
TOKENIZER = "tokenizer.json"
_FILE_LIMIT = 2_000_000_000  # bytes of weights; one protobuf message may have 2**31, the nodes included


def require_onnx() -> None:
    """Raise UserError if the extra [onnx] is not installed. Call it before long work."""
    for module in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(module)
        except ImportError:
            raise UserError(
                f"--onnx needs {module}, which is not installed.\nInstall both: pip install onnx onnxruntime"
            ) from None


def write_onnx(
    folder: Path, pooler: str, name: str, texts: TextSettings, int8: bool = False, steps: Sequence[Step] = ()
) -> None:
    """Add onnx/model.onnx to a folder that `export_model` makes, and to its README.md how to use it.

    The model is that of `encoder_graph`. name, texts: of the usage example. steps: what follows the pooler. int8: also
    write model_int8.onnx, with products and tables in 8 bits (ONNX Runtime's dynamic quantisation). It has a quarter of
    the size, and all-MiniLM-L6-v2 then scores 82.02 instead of 82.03 on STS-B test and 86.55 instead of 86.72 on dev
    (Spearman x 100, see benchmarks/onnx_quality.py). Raises UserError without the extra [onnx], if the model is too
    large for one file, and if the tokens of its prompts are not pooled: a graph does not know which these are.
    """
    require_onnx()
    if not texts.include_prompt and any(texts.prompts.values()):
        raise UserError(
            "--onnx: include_prompt = false of the Pooling module leaves the tokens of prompts out of the vector, and "
            f"no ONNX model here can know how many these are.\nLeave --onnx out, or remove the prompts from {SETTINGS} "
            "in a copy of the folder."
        )
    architecture = read_architecture(folder)
    params = load_params(folder, architecture, head="load" if pooler == "cls" else "none")
    size = sum(array.nbytes for array in jax.tree.leaves(params))
    if size > _FILE_LIMIT:
        raise UserError(
            f"{folder}: as ONNX the model has {size / 2**30:.1f} GiB, and one file holds at most 2.\n"
            "Leave --onnx out, and use the folder with sentence-transformers; or train a smaller model."
        )
    model, tokenizer = encoder_graph(params, architecture, pooler, steps), load_tokenizer(folder)
    inner = folder / FOLDER
    inner.mkdir()
    (inner / MODEL).write_bytes(model.SerializeToString())
    if int8:
        _quantise(model, inner / MODEL_INT8)
    for path in inner.iterdir():  # where they lay at first
        with contextlib.suppress(OSError):  # a file system without links
            (folder / path.name).symlink_to(f"{FOLDER}/{path.name}")
    with (folder / "README.md").open("a", encoding="utf-8") as file:
        file.write(f"\n{_usage(name, texts, tokenizer)}")


def _quantise(model: onnx.ModelProto, path: Path) -> None:
    """Write the model with 8-bit weights; activations are quantised at run time, by their range in each batch.

    Weights are unsigned: with signed ones, CPUs without VNNI add pairs of products in 16 bits, which can overflow.
    Each column has its own scale: over 400 pairs of STS-B dev, the embeddings of all-MiniLM-L6-v2 then have a mean
    cosine of 0.993 with the exact ones, against 0.982 with one scale per matrix (0.992 and 0.963 with signed weights).
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Marks a model with known shapes and folded constants, as ours is; without it the quantiser logs a warning.
    marked = copy.deepcopy(model)
    marked.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    quantize_dynamic(marked, path, weight_type=QuantType.QUInt8, per_channel=True)


def _usage(name: str, texts: TextSettings, tokenizer: PreTrainedTokenizerFast) -> str:
    return f"""## Use with ONNX Runtime

With `pip install onnxruntime tokenizers`:

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

{example(texts.prompt)}
tokenizer = Tokenizer.from_file("{name}/{TOKENIZER}")
tokenizer.enable_truncation({texts.max_seq_length})
tokenizer.enable_padding(pad_id={tokenizer.pad_token_id}, pad_token="{tokenizer.pad_token}")
texts = tokenizer.encode_batch(sentences)
inputs = {{
    "input_ids": np.array([text.ids for text in texts]),
    "attention_mask": np.array([text.attention_mask for text in texts]),
}}
session = onnxruntime.InferenceSession("{name}/{FOLDER}/{MODEL}")
embeddings = session.run(["sentence_embedding"], inputs)[0]  # of length 1
```
"""
