"""Read the weight files of a Hugging Face folder, safetensors or PyTorch's, whole or sharded; write safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Registers "bfloat16" with NumPy, which safetensors' NumPy reader needs for such tensors. JAX depends on it.
import ml_dtypes  # noqa: F401
import numpy as np

from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import shard_names

SAFETENSORS, PYTORCH = "model.safetensors", "pytorch_model.bin"
_FLOATS = ("F64", "F32", "F16", "BF16")
_LFS_POINTER = b"version https://git-lfs"
# Buffers that old releases stored beside the weights: plain 0, 1, 2 ... and zeros.
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def read_weights(folder: str | Path) -> dict[str, np.ndarray]:
    """Return every weight of a model folder by its name in the file, as float32 for every stored dtype.

    Looks for model.safetensors, its sharded form, then pytorch_model.bin and its sharded form, which need torch.
    """
    folder = Path(folder)
    for filename, read in ((SAFETENSORS, _read_safetensors), (PYTORCH, _read_pytorch)):
        if (folder / filename).is_file():
            return read(folder / filename)
        index = folder / f"{filename}.index.json"
        if index.is_file():
            weights: dict[str, np.ndarray] = {}
            for shard in _shards(index):
                weights |= read(shard)
            return weights
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) if folder.is_dir() else "no such folder"
    raise UserError(
        f"{folder} holds no weights.\n  wanted: {SAFETENSORS} or {PYTORCH}, whole or sharded with an .index.json\n"
        f"  found: {found or 'nothing'}\nWeights of TensorFlow or Flax: save them with transformers and PyTorch first."
    )


def read_weight_file(path: Path) -> dict[str, np.ndarray]:
    """Return every weight of one file, safetensors or PyTorch's by its suffix, as float32."""
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pytorch(path)


def _shards(index: Path) -> list[Path]:
    names = shard_names(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index} names shards that are not there: {', '.join(missing[:8])}.\nCopy the whole folder.")
    return [index.parent / name for name in names]


def write_weights(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write a safetensors file that transformers takes for PyTorch's."""
    from safetensors.numpy import save_file

    path.touch()
    mode = path.stat().st_mode  # as the umask says; safetensors makes a file that only its owner reads
    save_file(dict(tensors), path, metadata={"format": "pt"})  # transformers refuses a file without the format
    path.chmod(mode)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            weights = {}
            names: list[str] = file.keys()
            for name in names:
                if name.endswith(_BUFFERS):
                    continue
                kind = file.get_slice(name).get_dtype()
                if kind not in _FLOATS:
                    raise UserError(
                        f"{path}: {name} is stored as {kind}; only {', '.join(_FLOATS)} are read.\n"
                        "Quantised weights do not train: take the model's full-precision files."
                    )
                weights[name] = file.get_tensor(name).astype(np.float32, copy=False)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    return weights


def _read_pytorch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path.name} in {path.parent} is a pickle, which only PyTorch reads, and PyTorch is not installed.\n"
            "Either `pip install torch`, or convert the folder once where PyTorch is:\n"
            "  from transformers import AutoModel; AutoModel.from_pretrained('IN').save_pretrained('OUT')\n"
            "(with modules after pooling: from sentence_transformers import SentenceTransformer; "
            "SentenceTransformer('IN').save('OUT'))\n"
            f"which writes {SAFETENSORS}; many models on the Hub have that file as well."
        ) from None
    try:  # weights_only: a pickle may otherwise run any code
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and runtime errors alike
        raise _unreadable(path, error) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise UserError(f"{path} is no state dict (names to tensors) but something else that was pickled.")
    return {
        name: tensor.detach().to(torch.float32).numpy()
        for name, tensor in tensors.items()
        if not name.endswith(_BUFFERS)
    }


def _unreadable(path: Path, error: Exception) -> UserError:
    with path.open("rb") as file:
        pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    if pointer:
        return UserError(f"{path} is a Git LFS pointer, not the weights.\nFetch them with `git lfs pull`.")
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return UserError(
        f"{path} ({path.stat().st_size} bytes) does not read: {reason}\nIt may be cut short: copy or download it again."
    )
