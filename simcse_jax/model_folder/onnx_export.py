"""model.onnx beside the other files of an exported folder, and model_int8.onnx: the extra [onnx].

What runs them needs ONNX Runtime and the folder's tokenizer.json, and neither JAX nor PyTorch nor transformers.
"""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.encoder.families.table import read_architecture
from simcse_jax.model_folder.onnx_graph import encoder_graph
from simcse_jax.model_folder.pretrained import load_params
from simcse_jax.model_folder.st_modules import OURS, read_pooler
from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import write_whole

if TYPE_CHECKING:
    import onnx
    from transformers import PreTrainedTokenizerFast

MODEL, MODEL_INT8 = "model.onnx", "model_int8.onnx"
TOKENIZER = "tokenizer.json"
_FILE_LIMIT = 2_000_000_000  # bytes of weights; one protobuf message may have 2**31, the nodes included


def require_onnx() -> None:
    """Nothing, or UserError where the extra [onnx] is not installed. Call it before what takes long."""
    for module in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(module)
        except ImportError:
            raise UserError(
                f"--onnx needs {module}, which is not installed.\nInstall both: pip install onnx onnxruntime"
            ) from None


def write_onnx(folder: str | Path, int8: bool = False) -> list[Path]:
    """Write model.onnx into an exported folder, each file whole or not at all, and return the paths written.

    folder: as `model_folder.export_model` leaves it; a later export there replaces these files too. The model is
    `onnx.graph.encoder_graph`'s, with the folder's pooler. int8: also model_int8.onnx, whose products and tables are
    in 8 bits (ONNX Runtime's dynamic quantisation): a quarter of the size, and for all-MiniLM-L6-v2 82.02 instead of
    82.03 on STS-B test and 86.55 instead of 86.72 on dev (Spearman x 100, see benchmarks/onnx_quality.py). A missing
    tokenizer.json is added. UserError without the extra [onnx], when the folder does not say how it pools, or when the
    model is too large for one file.
    """
    require_onnx()
    folder = Path(folder)
    config, pooler = read_architecture(folder), read_pooler(folder)
    params = load_params(folder, config, head="load" if pooler == "cls" else "none")
    size = sum(array.nbytes for array in jax.tree.leaves(params))
    if size > _FILE_LIMIT:
        raise UserError(
            f"{folder}: as ONNX the model has {size / 2**30:.1f} GiB, and one file holds at most 2.\n"
            "Leave --onnx out, and use the folder with sentence-transformers; or train a smaller model."
        )
    model = encoder_graph(params, config, pooler)
    tokenizer, written = load_tokenizer(folder), []
    needs_tokenizer = not (folder / TOKENIZER).is_file()
    _note(folder, [MODEL, *([MODEL_INT8] if int8 else []), *([TOKENIZER] if needs_tokenizer else [])])
    if needs_tokenizer:
        written.append(_placed(folder, TOKENIZER, lambda path: tokenizer.backend_tokenizer.save(str(path))))
    written.append(_placed(folder, MODEL, lambda path: path.write_bytes(model.SerializeToString())))
    if int8:
        written.append(_placed(folder, MODEL_INT8, lambda path: _quantise(model, path)))
    _describe(folder, _usage(folder.resolve().name, config.max_length, tokenizer))
    return written


def _quantise(model: onnx.ModelProto, path: Path) -> None:
    """Write the model with weights of 8 bits; activations are quantised as they come, by their range in each batch.

    Weights are unsigned: with signed ones, CPUs without VNNI add pairs of products in 16 bits and cut what does not
    fit. A scale for each column: over 400 pairs of STS-B dev, all-MiniLM-L6-v2's vectors have a cosine of 0.993 with
    the exact ones on average, against 0.982 with one scale a matrix; and 0.992 and 0.963 with signed weights.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Said of a model whose shapes are known and whose constants are folded, as those of our graph are; without it
    # the quantiser advises to prepare the model first.
    marked = copy.deepcopy(model)
    marked.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    quantize_dynamic(marked, path, weight_type=QuantType.QUInt8, per_channel=True)


def _placed(folder: Path, name: str, write: Any) -> Path:
    """The path of a new file, which is there whole or not at all."""
    try:
        write_whole(folder / name, write)
    except OSError as error:
        raise UserError(f"{folder / name} cannot be written: {error.strerror or error}.") from error
    return folder / name


def _note(folder: Path, names: list[str]) -> None:
    """Add files, about to be written, to those that a later export replaces: no old vectors beside new weights."""
    path = folder / OURS
    if not path.is_file():
        return
    ours = json.loads(path.read_text(encoding="utf-8"))
    ours["files"] = sorted({*ours.get("files", ()), *names})
    text = json.dumps(ours, indent=2) + "\n"
    _placed(folder, OURS, lambda partial: partial.write_text(text, encoding="utf-8"))


def _describe(folder: Path, usage: str) -> None:
    """Add to the folder's README.md how the ONNX model is used, unless that is there already."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if usage not in text:
        text = f"{text.rstrip()}\n\n{usage}".lstrip()
        _placed(folder, path.name, lambda partial: partial.write_text(text, encoding="utf-8"))


def _usage(name: str, max_length: int, tokenizer: PreTrainedTokenizerFast) -> str:
    return f"""## Use with ONNX Runtime

With `pip install onnxruntime tokenizers`:

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

sentences = ["A man plays the guitar.", "Someone is making music."]
tokenizer = Tokenizer.from_file("{name}/{TOKENIZER}")
tokenizer.enable_truncation({max_length})
tokenizer.enable_padding(pad_id={tokenizer.pad_token_id}, pad_token="{tokenizer.pad_token}")
texts = tokenizer.encode_batch(sentences)
inputs = {{
    "input_ids": np.array([text.ids for text in texts]),
    "attention_mask": np.array([text.attention_mask for text in texts]),
}}
session = onnxruntime.InferenceSession("{name}/{MODEL}")
embeddings = session.run(["sentence_embedding"], inputs)[0]  # of length 1
```
"""
