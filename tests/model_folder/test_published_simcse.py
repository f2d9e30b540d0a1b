"""SimCSE's published folders, and what its training code leaves, with random weights: opened, and pooled as meant."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from simcse_jax import judging
from simcse_jax.data import demo
from simcse_jax.data.tokenizer import load_tokenizer, train_wordpiece
from simcse_jax.embedding_model import open_model
from simcse_jax.model_folder.st_modules import read_pipeline
from simcse_jax.system.errors import UserError
from tests.conftest import HubServer
from tests.torch_models import pad, random_model, relative_error, torch_embeddings

VOCABULARY = 300
TEXTS = ["a red dog sleeps", "two children play in the park", "", "music " * 12]
SUP, UNSUP = "sup-simcse-{}-base", "unsup-simcse-{}-base"


def published(folder: Path, family: str, kind: str, trained: bool = False) -> Any:
    """Write a folder of that shape, and return PyTorch's model with the same weights.

    kind: "safetensors" or "bin". trained: as the training code saves it, with a prefix and the head called mlp, not
    as its conversion script does.
    """
    folder.mkdir(parents=True)
    positions = 40 if family == "bert" else 42
    model = random_model(family, vocab_size=VOCABULARY, max_position_embeddings=positions)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if trained:
        tensors = {
            name.replace("pooler.", "mlp.") if name.startswith("pooler.") else f"{family}.{name}": tensor
            for name, tensor in tensors.items()
        }
    # Releases of that time kept the numbers of the places beside the weights.
    prefix = f"{family}." if trained else ""
    tensors[f"{prefix}embeddings.position_ids"] = np.arange(positions)[None]
    if kind == "bin":
        torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    name = {"bert": "Bert", "roberta": "Roberta"}[family]
    config["architectures"] = [f"{name}ForCL" if trained else f"{name}Model"]
    (folder / "config.json").write_text(json.dumps(config))
    # The words are BERT's in either family: a tokenizer is no part of what is tested.
    train_wordpiece(demo.sentences(count=200), VOCABULARY, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    return model


def error(folder: Path, model: Any, pooler: str | None, expected: str) -> float:
    """How far our vectors are from PyTorch's with the pooler `expected`."""
    opened = open_model(str(folder), pooler=pooler)
    assert opened.pooler == expected
    ids = load_tokenizer(folder)(TEXTS)["input_ids"]
    with torch.no_grad():
        theirs = torch_embeddings(model, *pad([np.array(tokens) for tokens in ids], 0), expected)
    return relative_error(opened.encode(TEXTS), theirs)


@pytest.mark.parametrize(
    ("family", "kind", "name", "pooler"),
    [("bert", "bin", SUP, "cls"), ("roberta", "safetensors", UNSUP, "cls_before_pooler")],
)
def test_published_folders_pool_as_their_authors_use_them(
    tmp_path: Path, family: str, kind: str, name: str, pooler: str
) -> None:
    folder = tmp_path / name.format(family)
    model = published(folder, family, kind)
    assert error(folder, model, None, pooler) < 2e-5


def test_what_the_training_code_saved(tmp_path: Path) -> None:
    """Its folder has any name, so the pooler has to be given."""
    model = published(tmp_path / "my-result", "roberta", "bin", trained=True)
    with pytest.raises(UserError, match=r"cls_before_pooler[\s\S]*--pooler=NAME"):
        open_model(str(tmp_path / "my-result"))
    for pooler in ("cls", "cls_before_pooler", "avg"):
        assert error(tmp_path / "my-result", model, pooler, pooler) < 2e-5


def test_hub_names(hub_server: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "local"
    published(folder, "bert", "safetensors")
    for name, pooler in ((SUP, "cls"), (UNSUP, "cls_before_pooler")):
        repo = f"princeton-nlp/{name.format('bert')}-uncased"
        for path in folder.iterdir():
            hub_server.add(repo, path.name, path.read_bytes())
        assert open_model(repo).pooler == pooler


NAMES = {
    "sup-simcse-bert-base-uncased": "cls",
    "unsup-simcse-roberta-large": "cls_before_pooler",
    "my-unsup-simcse-bert": "cls_before_pooler",
    "my_unsup_simcse": "cls_before_pooler",
    "Sup-SimCSE-BERT": "cls",
    "simcse-bert": "",
    "semisup-simcse": "",
    "sup-simcse-runs/7": "",
    "sup-simclr": "",
}


@pytest.mark.parametrize(("name", "pooler"), NAMES.items())
def test_names(tmp_path: Path, name: str, pooler: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    if not pooler:
        with pytest.raises(UserError, match="does not say"):
            read_pipeline(tmp_path / name)
        return
    assert read_pipeline(tmp_path / name).pooler == pooler
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / name).symlink_to(tmp_path)
    assert read_pipeline(tmp_path / "linked" / name).pooler == pooler


def test_a_name_without_the_head_it_promises(tmp_path: Path) -> None:
    folder = tmp_path / SUP.format("bert")
    published(folder, "bert", "safetensors")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "pooler" not in name}, folder / "model.safetensors")
    with pytest.raises(UserError, match="has no trained head"):
        open_model(str(folder)).encode(TEXTS)


def test_files_and_arguments_go_before_the_name(tmp_path: Path) -> None:
    folder = tmp_path / SUP.format("bert")
    model = published(folder, "bert", "safetensors")
    assert error(folder, model, "avg", "avg") < 2e-5
    protocol = judging.protocol(open_model(str(folder), pooler="avg"))
    assert protocol["pooler from"] == "asked for; the model's own: cls"
    (folder / "simcse_jax.json").write_text('{"pooler": "avg_top2"}')
    assert read_pipeline(folder).pooler == "avg_top2"
