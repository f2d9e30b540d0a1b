"""Folders as sentence-transformers writes them: its vectors by every way that encodes, or a refusal by file and key."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st

from simcse_jax import SimCSE
from simcse_jax.data import demo
from simcse_jax.data.tokenizer import train_wordpiece
from simcse_jax.embedding_model import open_model
from simcse_jax.evaluation.suite import TaskSuite
from simcse_jax.judging import judge_models
from simcse_jax.model_folder.after_pooling import Dense, apply_steps
from simcse_jax.model_folder.export import convert
from simcse_jax.model_folder.onnx_graph import IR_VERSION, OPSET, Graph
from simcse_jax.model_folder.onnx_pooling import add_steps
from simcse_jax.model_folder.st_modules import read_pipeline
from simcse_jax.model_folder.torch_activations import ACTIVATIONS
from simcse_jax.mteb_encoder import MtebEncoder
from simcse_jax.system.errors import UserError
from simcse_jax.system.vectors import normalize
from simcse_jax.training.display import describe
from tests.model_folder.test_onnx_export import onnx_vectors
from tests.small_models import FROM_FOLDER, VOCABULARY, prepare_small
from tests.torch_models import random_model, relative_error

WIDTH, LAYERS, LONGEST = 32, 2, 40
TEXTS = ["a red dog sleeps", "two children play in the park", "", "music " * 90]
PROMPT = "a man plays: "
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


class Made:
    """Make folders around one small encoder."""

    def __init__(self, folder: Path):
        train_wordpiece(demo.sentences(count=500), VOCABULARY, folder)
        random_model("bert", vocab_size=VOCABULARY, num_hidden_layers=LAYERS).save_pretrained(folder)
        self.folder = folder

    def save(self, out: Path, *modules: Any, hidden_states: bool = False, **options: Any) -> None:
        torch.manual_seed(0)
        config = {"output_hidden_states": True} if hidden_states else {}
        encoder = st.Transformer(str(self.folder), config_kwargs=config)
        model = SentenceTransformer(modules=[encoder, *(make() for make in modules)], device="cpu", **options)
        for name, parameter in model.named_parameters():
            if "norm" in name.split(".") or "layer_weights" in name:
                parameter.data = torch.rand(parameter.shape) + 0.2
        model.save(str(out))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("encoder"))


def edit(path: Path, **keys: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | keys))


def edit_whole(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def pooling(*modes: Any, **options: Any) -> Callable[[], Any]:
    return lambda: st.Pooling(WIDTH, modes, **options)


def dense(wide: int = WIDTH, out: int = 16, activation: Any = None, **options: Any) -> Callable[[], Any]:
    return lambda: st.Dense(wide, out, activation_function=activation or torch.nn.Tanh(), **options)


def layers(start: int = 0) -> Callable[[], Any]:
    return lambda: st.WeightedLayerPooling(WIDTH, num_hidden_layers=LAYERS, layer_start=start)


def as_release_2(*modes: str) -> Callable[[Path], None]:
    """Let a folder name its modules, and these modes of pooling, as releases before 5 do."""

    def change(folder: Path) -> None:
        entries = json.loads((folder / "modules.json").read_text())
        for entry in entries:
            entry["type"] = "sentence_transformers.models." + entry["type"].split(".")[-1]
        (folder / "modules.json").write_text(json.dumps(entries))
        names = {mode: f"pooling_mode_{mode}" for mode in MODES} | {"cls": "pooling_mode_cls_token"}
        names |= {mode: f"pooling_mode_{mode}_tokens" for mode in ("max", "mean", "weightedmean")}
        keys = {name: mode in modes for mode, name in names.items()}
        file = folder / "1_Pooling" / "config.json"
        file.write_text(json.dumps({"word_embedding_dimension": WIDTH, **keys}))

    return change


def cut_to(width: int) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config_sentence_transformers.json", truncate_dim=width)


def without_keys(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": WIDTH}))


def old_layout(folder: Path) -> None:
    (folder / "0_Transformer").mkdir()
    for path in [*folder.iterdir()]:
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
            path.rename(folder / "0_Transformer" / path.name)
    entries = json.loads((folder / "modules.json").read_text())
    entries[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(entries))


def pickled(folder: Path) -> None:
    weights = folder / "2_Dense" / "model.safetensors"
    torch.save(
        {name: torch.tensor(array) for name, array in load_file(weights).items()}, folder / "2_Dense/pytorch_model.bin"
    )
    weights.unlink()


PROMPTED: dict[str, Any] = {"prompts": {"query": PROMPT, "document": ""}, "default_prompt_name": "query"}
SHORT: dict[str, Any] = {"max_seq_length": 5}
# Modules after the encoder, what is changed in the folder, and options of the model.
VARIANTS: dict[str, tuple[list[Callable[[], Any]], Callable[[Path], None] | None, dict[str, Any]]] = {
    **{mode: ([pooling(mode)], None, {}) for mode in MODES},
    "cls and mean": ([pooling("cls", "mean")], None, {}),
    "last, mean and max": ([pooling("lasttoken", "mean", "max")], None, {}),
    "all modes": ([pooling(*MODES)], None, {}),
    "a mode twice": ([pooling("mean", "mean")], None, {}),
    "keys of release 2": ([pooling("max")], as_release_2("max"), {}),
    "several keys of release 2": ([pooling("max")], as_release_2("lasttoken", "mean", "cls"), {}),
    "no keys": ([pooling("mean")], without_keys, {}),
    "of length 1": ([pooling("mean"), st.Normalize], None, {}),
    "dense, of length 1": ([pooling("mean"), dense(), st.Normalize], None, {}),
    "dense of release 2": ([pooling("mean"), dense()], as_release_2("mean"), {}),
    "dense in a pickle": ([pooling("mean"), dense()], pickled, {}),
    "wider, without bias": ([pooling("cls"), dense(out=48, activation=torch.nn.Identity(), bias=False)], None, {}),
    "two dense": ([pooling("max"), dense(out=24, activation=torch.nn.GELU()), dense(24, 8)], None, {}),
    "dense of several modes": ([pooling("cls", "mean"), dense(2 * WIDTH)], None, {}),
    "residual": ([pooling("mean"), dense(out=WIDTH, use_residual=True)], None, {}),
    "residual to another width": ([pooling("mean"), dense(use_residual=True)], None, {}),
    "layer norm": ([pooling("mean"), lambda: st.LayerNorm(WIDTH)], None, {}),
    "length 1, dense, norm": ([pooling("mean"), st.Normalize, dense(), lambda: st.LayerNorm(16)], None, {}),
    "dropout": ([pooling("mean"), lambda: st.Dropout(0.5), dense()], None, {}),
    "weights of layers": ([layers(), pooling("mean")], None, {"hidden_states": True}),
    "weights of the last layers": ([layers(1), pooling("mean_sqrt_len_tokens", "mean")], None, {"hidden_states": True}),
    "weight of the last layer": ([layers(LAYERS), pooling("max")], None, {"hidden_states": True}),
    "cut": ([pooling("mean")], cut_to(8), {}),
    "length 1, cut": ([pooling("mean"), dense(), st.Normalize], cut_to(8), {}),
    "cut to more than there is": ([pooling("mean")], cut_to(512), {}),
    "a prompt": ([pooling("mean"), dense()], None, PROMPTED),
    **{
        f"a prompt left out, {mode}": ([pooling(mode, include_prompt=False)], None, PROMPTED)
        for mode in ("cls", "mean", "weightedmean", "lasttoken", "mean_sqrt_len_tokens")
    },
    "old layout": ([pooling("mean"), dense()], old_layout, {}),
}


def whole(folder: Path) -> np.ndarray:
    vectors = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert isinstance(vectors, np.ndarray)
    return vectors


# Each module, mode of pooling and layout of the folder is in one of these. The others are slow tests.
FAST = (
    *("cls", "weightedmean", "lasttoken", "all modes", "weights of layers", "a prompt", "a prompt left out, mean"),
    *("two dense", "residual", "layer norm", "length 1, cut", "no keys", "keys of release 2", "old layout"),
    *("dropout", "dense in a pickle"),
)


@pytest.mark.parametrize(
    ("modules", "change", "options"),
    [
        pytest.param(*values, id=name, marks=() if name in FAST else pytest.mark.slow)
        for name, values in VARIANTS.items()
    ],
)
def test_vectors_are_those_of_sentence_transformers(
    made: Made, tmp_path: Path, modules: list[Callable[[], Any]], change: Any, options: dict[str, Any]
) -> None:
    """Of the folder, of an export of it, and of the export's ONNX model."""
    source, out = tmp_path / "source", tmp_path / "out"
    made.save(source, *modules, **options)
    if change:
        change(source)
    theirs, model = whole(source), open_model(str(source))
    assert relative_error(model.encode(TEXTS), theirs) < 2e-5
    assert model.width == theirs.shape[1]
    unit = normalize(theirs)
    np.testing.assert_allclose(normalize(model.encode(TEXTS, normalize=False)), unit, rtol=0, atol=2e-5)
    batches: Any = [{"text": TEXTS[:2]}, {"text": TEXTS[2:]}]
    assert relative_error(MtebEncoder(str(source)).encode(batches), theirs) < 2e-5
    np.testing.assert_allclose(SimCSE(source, max_length=LONGEST).encode(TEXTS), unit, rtol=0, atol=2e-5)

    has_graph = model.texts.include_prompt
    convert(str(source), out, onnx=has_graph)
    for vectors in (whole(out), open_model(str(out)).encode(TEXTS)):
        assert relative_error(vectors, theirs) < 2e-5
    assert open_model(str(out)).fingerprint == model.fingerprint
    assert f"{theirs.shape[1]} numbers" in (out / "README.md").read_text()
    if has_graph:
        given = [model.texts.prompt + text for text in TEXTS]
        np.testing.assert_allclose(onnx_vectors(out, given, LONGEST), unit, rtol=0, atol=2e-5)
    else:
        with pytest.raises(UserError, match="include_prompt"):
            convert(str(source), tmp_path / "other", onnx=True)


def test_every_activation(made: Made, tmp_path: Path) -> None:
    """In NumPy, and as ONNX."""
    vectors = np.linspace(-8, 8, 5 * WIDTH, dtype=np.float32).reshape(5, WIDTH)
    made.save(tmp_path, pooling("mean"), dense())
    graph, expected = Graph(), dict[str, np.ndarray]()
    for name in ACTIVATIONS:
        module = st.Dense(WIDTH, 16, activation_function=getattr(torch.nn, name)()).eval()
        module.save(str(tmp_path / "2_Dense"))
        found = module({"sentence_embedding": torch.tensor(vectors)})["sentence_embedding"].detach().numpy()
        [step] = read_pipeline(tmp_path).steps
        np.testing.assert_allclose(apply_steps([step], vectors), found, atol=3e-6, err_msg=name)
        assert isinstance(step, Dense)
        once = dataclasses.replace(step, kernel=np.eye(WIDTH), bias=None)
        graph.op("Identity", add_steps(graph, "x", [once]), name=name)
        expected[name] = once(vectors)
    floats = functools.partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in graph.weights.items()]
    outputs = [floats(name, shape=["n", WIDTH]) for name in expected]
    made_graph = onnx.helper.make_graph(graph.nodes, "all", [floats("x", shape=["n", WIDTH])], outputs, weights)
    model = onnx.helper.make_model(
        made_graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outcomes: Any = session.run([*expected], {"x": vectors})
    for name, found in zip(expected, outcomes, strict=True):
        np.testing.assert_allclose(found, expected[name], atol=3e-6, err_msg=name)


def test_a_pooler_in_place_of_the_folders_own(made: Made, tmp_path: Path) -> None:
    """What was trained for the folder's pooler is left out with it; scaling to length 1 and cutting are not."""
    made.save(tmp_path / "source", pooling("mean"), dense(), st.Normalize)
    cut_to(8)(tmp_path / "source")
    made.save(tmp_path / "plain", pooling("max"))
    expected = normalize(whole(tmp_path / "plain"))[:, :8]
    convert(str(tmp_path / "source"), tmp_path / "out", "max")
    for model in (open_model(str(tmp_path / "source"), "max"), open_model(str(tmp_path / "out"))):
        assert relative_error(model.encode(TEXTS), expected) < 2e-5


def test_fingerprints_tell_modules_apart(made: Made, tmp_path: Path) -> None:
    steps = ([], [st.Normalize], [dense()], [dense(activation=torch.nn.ReLU())], [st.Normalize, dense()])
    found = []
    for number, modules in enumerate(steps):
        made.save(tmp_path / str(number), pooling("mean"), *modules)
        found.append(open_model(str(tmp_path / str(number))).fingerprint)
    assert found[0] == found[1]  # the same cosines
    assert len(set(found)) == len(steps) - 1
    cut_to(8)(tmp_path / "0")
    assert open_model(str(tmp_path / "0")).fingerprint not in found


def test_what_is_left_out_is_said(made: Made, tmp_path: Path) -> None:
    """By a training from such a folder, and where it is judged with another pooler."""
    made.save(tmp_path / "source", pooling("mean"), dense(), st.Normalize, **PROMPTED)
    flags = FROM_FOLDER | {"model__name": str(tmp_path / "source")}
    lines = describe(prepare_small(tmp_path / "run", tmp_path / "cache", **flags))
    assert any("2_Dense, default_prompt_name of" in line for line in lines)
    judge_models([open_model(str(tmp_path / "source"), "max")], TaskSuite(()), say=lines.append)
    assert "Dense are left out" in next(line for line in lines if line.startswith("NOTE"))
    convert(str(tmp_path / "source"), tmp_path / "out", "max")
    edit(tmp_path / "out" / "config_sentence_transformers.json", default_prompt_name=None)
    flags = FROM_FOLDER | {"model__name": str(tmp_path / "out")}
    lines = describe(prepare_small(tmp_path / "other", tmp_path / "cache", **flags))
    assert not any("no part of training" in line for line in lines)


# What is refused ------------------------------------------------------------------------------------------------------


def add_module(kind: str, place: int = 2, prefix: str = "sentence_transformers.models.") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        entries = json.loads((folder / "modules.json").read_text())
        entries.insert(place, {"idx": place, "name": kind, "path": f"9_{kind}", "type": prefix + kind})
        (folder / "modules.json").write_text(json.dumps(entries))

    return change


def keys_of(place: str, **keys: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / place, **keys)


def weights_of(place: str, **arrays: np.ndarray) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / place / "model.safetensors"
        named = {name.replace("__", "."): array for name, array in arrays.items()}
        save_file(load_file(path) | named, path, metadata={"format": "pt"})

    return change


DENSE = [pooling("mean"), dense()]
REFUSED: dict[str, tuple[list[Callable[[], Any]], Callable[[Path], None], str]] = {
    "a network before pooling": (DENSE, add_module("CNN", 1), r"modules\.json asks for Transformer, CNN"),
    "weights of words": (DENSE, add_module("WordWeights", 1), r"modules\.json asks for"),
    "dense before pooling": (DENSE, add_module("Dense", 1), r"modules\.json asks for"),
    "pooling twice": (DENSE, add_module("Pooling", 3), r"modules\.json asks for"),
    "code of its own": (DENSE, add_module("Dense", 2, "custom."), r"modules\.json: type = 'custom\.Dense'"),
    "an unknown mode": (DENSE, keys_of("1_Pooling/config.json", pooling_mode="first"), "pooling_mode"),
    "an unknown mode in a list": (DENSE, keys_of("1_Pooling/config.json", pooling_mode=["max", "x"]), "pooling_mode"),
    "no mode": (DENSE, as_release_2(), r"1_Pooling/config\.json pools by nothing"),
    "a list for keys": (DENSE, lambda folder: edit_whole(folder / "1_Pooling/config.json", []), "holds a list"),
    "an unknown key of pooling": (DENSE, keys_of("1_Pooling/config.json", top=3), "1_Pooling/config.json: top = 3"),
    "pooling of another width": (
        DENSE,
        keys_of("1_Pooling/config.json", embedding_dimension=48),
        r"1_Pooling/config\.json: embedding_dimension = 48, .* 32",
    ),
    "pooling of another width, in release 2": (
        DENSE,
        keys_of("1_Pooling/config.json", word_embedding_dimension=48),
        r"1_Pooling/config\.json: word_embedding_dimension = 48, .* 32",
    ),
    "weighed layers of another width": (
        [layers(), pooling("mean")],
        keys_of("1_WeightedLayerPooling/config.json", embedding_dimension=48),
        r"1_WeightedLayerPooling/config\.json: embedding_dimension = 48",
    ),
    "an unknown key of dense": (DENSE, keys_of("2_Dense/config.json", gate=True), "2_Dense/config.json: gate = True"),
    "an activation with arguments": (
        DENSE,
        keys_of("2_Dense/config.json", activation_function="torch.nn.modules.activation.Threshold"),
        "2_Dense/config.json: activation_function",
    ),
    "an activation of others": (
        DENSE,
        keys_of("2_Dense/config.json", activation_function="custom.Tanh"),
        "2_Dense/config.json: activation_function",
    ),
    "dense of tokens": (
        DENSE,
        keys_of("2_Dense/config.json", module_input_name="token_embeddings"),
        "2_Dense/config.json: module_input_name",
    ),
    "dense of another width": (
        DENSE,
        keys_of("2_Dense/config.json", in_features=48),
        "2_Dense/config.json: in_features",
    ),
    "weights of another shape": (DENSE, weights_of("2_Dense", linear__bias=np.zeros(3, np.float32)), "2_Dense"),
    "weights that are NaN": (DENSE, weights_of("2_Dense", linear__bias=np.full(16, np.nan, np.float32)), "2_Dense"),
    "no weights": (DENSE, lambda folder: (folder / "2_Dense/model.safetensors").unlink(), "2_Dense holds no weights"),
    "norm of another width": (
        [pooling("mean"), lambda: st.LayerNorm(WIDTH)],
        keys_of("2_LayerNorm/config.json", dimension=8),
        "2_LayerNorm/config.json: dimension",
    ),
    "weighed layers without their states": (
        [layers(), pooling("mean")],
        keys_of("config.json", output_hidden_states=False),
        "output_hidden_states",
    ),
    "the largest of weighed layers": (
        [layers(), pooling("max")],
        keys_of("config.json", output_hidden_states=True),
        r"1_WeightedLayerPooling/config\.json",
    ),
    "weights of too many layers": (
        [layers(), pooling("mean")],
        weights_of("1_WeightedLayerPooling", layer_weights=np.ones(7, np.float32)),
        r"1_WeightedLayerPooling/config\.json: layer_start",
    ),
    "a width that is a text": (DENSE, keys_of("config_sentence_transformers.json", truncate_dim="8"), "truncate_dim"),
}


@pytest.mark.parametrize(("modules", "change", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(
    made: Made, tmp_path: Path, modules: list[Callable[[], Any]], change: Callable[[Path], None], said: str
) -> None:
    made.save(tmp_path / "source", *modules)
    change(tmp_path / "source")
    for way_in in (open_model, lambda name: convert(name, tmp_path / "out")):
        with pytest.raises(UserError, match=said):
            way_in(str(tmp_path / "source"))


def test_an_export_whose_modules_were_changed(made: Made, tmp_path: Path) -> None:
    """Its own file and the modules say two things; without the former, the modules count."""
    made.save(tmp_path / "source", pooling("mean"))
    convert(str(tmp_path / "source"), tmp_path / "out")
    as_release_2("max")(tmp_path / "out")
    with pytest.raises(UserError, match=r"simcse_jax\.json: pooler = 'avg', but .*1_Pooling.* pools by max"):
        open_model(str(tmp_path / "out"))
    (tmp_path / "out" / "simcse_jax.json").unlink()
    assert relative_error(open_model(str(tmp_path / "out")).encode(TEXTS), whole(tmp_path / "out")) < 2e-5
    shutil.rmtree(tmp_path / "out")
