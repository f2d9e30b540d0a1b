"""The ONNX graph: checked against PyTorch for every family, pooler and activation, under every kind of padding."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from simcse_jax.encoder.activations import ACTIVATIONS
from simcse_jax.encoder.families.table import read_architecture
from simcse_jax.encoder.pooling import POOLERS
from simcse_jax.model_folder.onnx_graph import OPSET, encoder_graph
from simcse_jax.model_folder.pretrained import load_params
from tests.torch_models import FAMILIES, WITHOUT_HEAD, pad, random_model, torch_embeddings

TOLERANCE = 2e-6  # of vectors of length 1
LENGTHS = (38, 2, 17, 9)


def some_tokens(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    """Token ids that are no family's padding."""
    rng = np.random.default_rng(0)
    return [rng.integers(5, 120, length) for length in lengths]


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def graph_of(model: Any, folder: Path, pooler: str) -> onnx.ModelProto:
    model.save_pretrained(folder)
    config = read_architecture(folder)
    return encoder_graph(load_params(folder, config, "load" if pooler == "cls" else "none"), config, pooler)


def vectors(model: onnx.ModelProto, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    result = session(model).run(["sentence_embedding"], inputs)[0]
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.float32
    return result


def error(ours: np.ndarray, theirs: torch.Tensor) -> float:
    """How far ours are from theirs, made of length 1."""
    expected = torch.nn.functional.normalize(theirs).detach().numpy()
    assert ours.shape == expected.shape
    return float(np.abs(ours - expected).max())


CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(("bert", pooler, {}) for pooler in POOLERS),
    *((family, "avg_embedding_last" if family in WITHOUT_HEAD else "cls", {}) for family in FAMILIES[1:]),
    ("modernbert", "avg_top2", {"attention_bias": True, "mlp_bias": True, "norm_bias": True}),
    *(("bert", "avg", {"hidden_act": activation}) for activation in ACTIVATIONS),
    *(("bert", pooler, {"num_hidden_layers": n}) for n in (1, 2) for pooler in ("avg_first_last", "avg_top2")),
]


@pytest.mark.parametrize(("family", "pooler", "changes"), CASES)
def test_vectors_are_those_of_torch(tmp_path: Path, family: str, pooler: str, changes: dict[str, Any]) -> None:
    torch_model = random_model(family, **changes)
    graph = graph_of(torch_model, tmp_path, pooler)
    ids, mask = pad(some_tokens(), torch_model.config.pad_token_id)
    assert error(vectors(graph, ids, mask), torch_embeddings(torch_model, ids, mask, pooler)) < TOLERANCE


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnx.ModelProto]:
    folder = tmp_path_factory.mktemp("roberta")
    return {pooler: graph_of(random_model("roberta"), folder, pooler) for pooler in ("cls", "avg_first_last")}


@pytest.mark.parametrize("pooler", ["cls", "avg_first_last"])
def test_vectors_do_not_depend_on_the_padding(roberta: dict[str, onnx.ModelProto], pooler: str) -> None:
    tokens, graph = some_tokens(), roberta[pooler]
    alone = np.concatenate([vectors(graph, *pad([one], 1)) for one in tokens])
    ids, mask = pad(tokens, 1)
    np.testing.assert_allclose(vectors(graph, ids, mask), alone, rtol=0, atol=TOLERANCE)
    # Whatever stands in the padding, and on whichever side.
    junk = torch.where(mask.bool(), ids, torch.full_like(ids, 77))
    np.testing.assert_allclose(vectors(graph, junk, mask), alone, rtol=0, atol=TOLERANCE)
    places = [np.roll(np.arange(ids.shape[1]), ids.shape[1] - len(one)) for one in tokens]
    left_ids, left_mask = (
        torch.tensor(np.stack([row[p] for row, p in zip(x, places, strict=True)])) for x in (ids, mask)
    )
    assert left_mask[1, 0] == 0
    np.testing.assert_allclose(vectors(graph, left_ids, left_mask), alone, rtol=0, atol=TOLERANCE)


def test_a_row_without_tokens_gives_numbers(roberta: dict[str, onnx.ModelProto]) -> None:
    ids, mask = pad(some_tokens(), 1)
    mask[1] = 0
    for graph in roberta.values():
        assert np.isfinite(vectors(graph, ids, mask)).all()


def test_a_model_without_token_types(tmp_path: Path) -> None:
    torch_model = random_model("bert")
    with torch.no_grad():
        torch_model.embeddings.token_type_embeddings.weight.zero_()
    torch_model.save_pretrained(tmp_path)
    config = read_architecture(tmp_path)
    params = load_params(tmp_path, config, "none")
    del params["embeddings"]["token_type"]
    graph = encoder_graph(params, dataclasses.replace(config, type_vocab_size=0), "avg")
    ids, mask = pad(some_tokens(), 0)
    assert error(vectors(graph, ids, mask), torch_embeddings(torch_model, ids, mask, "avg")) < TOLERANCE


def test_what_the_file_says_of_itself(roberta: dict[str, onnx.ModelProto]) -> None:
    graph = roberta["cls"]
    onnx.checker.check_model(graph, full_check=True)
    assert [entry.version for entry in graph.opset_import] == [OPSET]
    assert {entry.key: entry.value for entry in graph.metadata_props} == {
        "pooler": "cls",
        "max_length": "40",
        "normalized": "true",
    }
    runtime = session(graph)
    described = {entry.name: (entry.type, entry.shape) for entry in (*runtime.get_inputs(), *runtime.get_outputs())}
    assert described == {
        "input_ids": ("tensor(int64)", ["batch", "tokens"]),
        "attention_mask": ("tensor(int64)", ["batch", "tokens"]),
        "sentence_embedding": ("tensor(float)", ["batch", 32]),
        "token_embeddings": ("tensor(float)", ["batch", "tokens", 32]),
    }


def test_token_embeddings_are_the_last_layer(tmp_path: Path) -> None:
    torch_model = random_model("bert")
    graph = graph_of(torch_model, tmp_path, "cls")
    ids, mask = pad(some_tokens((7, 7)), 0)
    inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    ours = np.asarray(session(graph).run(["token_embeddings"], inputs)[0])
    expected = torch_model(input_ids=ids, attention_mask=mask).last_hidden_state.detach().numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_what_no_graph_can_be_made_of(tmp_path: Path) -> None:
    random_model("bert").save_pretrained(tmp_path)
    config = read_architecture(tmp_path)
    params = load_params(tmp_path, config, "none")
    params["layers"]["attention"]["relative_bias"] = np.zeros((3, 4))
    with pytest.raises(ValueError, match="parameters that this graph does not use"):
        encoder_graph(params, config, "avg")
