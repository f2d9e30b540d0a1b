"""Encoding: order, precision, the same numbers on any number of devices, and no work done twice."""

from typing import Any, cast

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from simcse_jax.data.tokenizer import load_tokenizer, train_wordpiece
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.model import Encoder
from simcse_jax.encoding import SMALL_GROUP, SentenceEncoder, pack_rows, row_lengths
from simcse_jax.system.errors import UserError
from simcse_jax.training.mesh import state_shardings
from tests.packed import pack

WORDS = [f"{a}{b}" for a in ("sun", "moon", "star", "sea", "hill", "wood") for b in ("", "ly", "er", "ward", "ish")]
CONFIG = Architecture("bert", 200, 32, 2, 4, 64, max_position_embeddings=128, initializer_range=0.3)
MODEL = Encoder(CONFIG)


def _mesh(data: int, fsdp: int = 1) -> Mesh:
    devices = jax.devices()[: data * fsdp]
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def _check_same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-6 as unit vectors, which is how they are used."""
    for vectors in (actual, expected):
        assert vectors.dtype == np.float32
    actual, expected = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (actual, expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


class CountingTokenizer:
    """A tokenizer that remembers how many texts it has seen."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.seen = tokenizer, 0

    def __call__(self, texts: list[str], **options: Any) -> Any:
        self.seen += len(texts)
        return self.tokenizer(texts, **options)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_wordpiece([" ".join(WORDS)] * 5, 120, folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def params() -> Any:
    group = pack([np.arange(3)], 4)
    return jax.jit(lambda: MODEL.init(jax.random.key(0), group, "avg")["params"])()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Of 0 to 100 words, mostly few; some of them equal."""
    rng = np.random.default_rng(0)
    counts = np.r_[0, 100, 70, rng.integers(1, 20, 300)]
    made = [" ".join(rng.choice(WORDS, n)) for n in rng.permutation(counts)]
    return made + made[:20]


@pytest.fixture(scope="module")
def one(tokenizer: Any) -> SentenceEncoder:
    """On one device; shared, because it keeps what it has compiled."""
    return SentenceEncoder(MODEL, tokenizer, _mesh(1), "avg")


@pytest.fixture(scope="module")
def vectors(one: SentenceEncoder, params: Any, texts: list[str]) -> np.ndarray:
    return one.encode(params, texts)


@pytest.mark.medium
def test_order_and_values(tokenizer: Any, params: Any, texts: list[str], vectors: np.ndarray) -> None:
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(texts), 32)
    tokens = [np.array(ids) for ids in tokenizer(texts, truncation=True, max_length=128)["input_ids"]]
    group = pack(tokens, 128, one_per_row=True)
    expected = jax.jit(lambda params: MODEL.apply({"params": params}, group, "avg"))(params)
    _check_same(vectors, np.asarray(expected))


@pytest.mark.parametrize("shape", [(8, 1), (2, 2)])
def test_device_count_changes_nothing(
    shape: tuple[int, int], tokenizer: Any, params: Any, texts: list[str], vectors: np.ndarray
) -> None:
    mesh = _mesh(*shape)
    encoder = SentenceEncoder(MODEL, tokenizer, mesh, "avg")
    placed = jax.device_put(params, state_shardings(mesh, params))
    assert any(x.sharding.spec for x in jax.tree.leaves(placed))  # some are split, over all devices or over fsdp
    _check_same(encoder.encode(placed, texts), vectors)


def test_company_changes_nothing(one: SentenceEncoder, params: Any, texts: list[str], vectors: np.ndarray) -> None:
    for picked in ([5], [17, 3, 40], list(range(100, 130))):
        _check_same(one.encode(params, [texts[n] for n in picked]), vectors[picked])


def test_little_is_encoded_small(one: SentenceEncoder, texts: list[str]) -> None:
    (call,) = one._calls(tuple(sorted(texts, key=len)[1:4]))
    assert call.groups.ids.size == SMALL_GROUP


def test_nothing_and_empty_texts(one: SentenceEncoder, tokenizer: Any, params: Any) -> None:
    assert one.encode(params, []).shape == (0, 32)
    (call,) = one._calls(("",))
    assert call.groups.lengths.sum() == 2
    np.testing.assert_array_equal(call.groups.ids[0, 0, :2], [tokenizer.cls_token_id, tokenizer.sep_token_id])
    assert np.isfinite(one.encode(params, [""])).all()


def test_a_text_without_tokens_is_named(tokenizer: Any, params: Any) -> None:
    """As the empty text is where the tokenizer adds no special tokens."""

    def bare(texts: list[str], **options: Any) -> Any:
        return tokenizer(texts, add_special_tokens=False, **options)

    encoder = SentenceEncoder(MODEL, cast(Any, bare), _mesh(1), "avg")
    assert encoder.count_tokens(["", "sun"]).tolist() == [0, 1]
    with pytest.raises(UserError, match="''"):
        encoder.encode(params, ["sun", ""])


def test_texts_are_cut_at_the_limit_of_the_model(one: SentenceEncoder, tokenizer: Any) -> None:
    text = " ".join(WORDS * 10)
    (call,) = one._calls((text,))
    assert call.groups.lengths.max() == one.max_length == 128
    (short,) = SentenceEncoder(MODEL, tokenizer, _mesh(1), "avg", max_length=9)._calls((text,))
    assert short.groups.lengths.max() == 9


def test_new_params_need_no_compilation_and_no_tokenizer(
    tokenizer: Any, params: Any, texts: list[str], vectors: np.ndarray
) -> None:
    counting: Any = CountingTokenizer(tokenizer)
    encoder = SentenceEncoder(MODEL, counting, _mesh(1), "avg")
    encoder.encode(params, texts)
    compiled, seen = encoder._apply._cache_size(), counting.seen
    assert seen == len(set(texts))  # equal texts once
    assert compiled <= len(row_lengths(128))
    doubled = jax.tree.map(lambda x: 2 * np.asarray(x), params)
    other = encoder.encode(doubled, list(texts))
    assert (encoder._apply._cache_size(), counting.seen) == (compiled, seen)
    assert np.abs(other - vectors).max() > 0.1
    for n in range(10):  # other inputs push the first one out, and memory stays bounded
        encoder._calls((str(n),))
    assert len(encoder._cache) <= 4


def test_a_call_is_dispatched_before_the_last_one_is_read(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any, params: Any, texts: list[str]
) -> None:
    encoder = SentenceEncoder(MODEL, tokenizer, _mesh(1), "avg")
    events = []

    class Result:
        def __init__(self, groups: Any):
            events.append("dispatch")
            self.shape = (*groups.lengths.shape, 32)

        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            events.append("read")
            return np.zeros(self.shape, np.float32)

    monkeypatch.setattr(encoder, "_apply", lambda params, groups: Result(groups))
    encoder.encode(params, texts)
    calls = len(events) // 2
    assert calls > 2
    assert events == ["dispatch"] + ["dispatch", "read"] * (calls - 1) + ["read"]


def test_blocks_are_encoded_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, one: SentenceEncoder, params: Any, texts: list[str], vectors: np.ndarray
) -> None:
    monkeypatch.setattr("simcse_jax.encoding.BLOCK", 100)
    _check_same(one.encode(params, texts), vectors)


def test_rows_hold_every_sentence_once_and_little_else() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(2.7, 0.5, 5000).astype(int), 3, 100)
    rows = pack_rows(lengths, row_lengths(512))
    assert list(row_lengths(512)) == [64, 128, 256, 512]
    assert set(rows) == {64, 128}
    assert sorted(n for some in rows.values() for row in some for n in row) == list(range(5000))
    for row_length, some in rows.items():
        assert max(lengths[row].sum() for row in some) <= row_length
        assert max(len(row) for row in some) <= row_length // 8
        assert min(max(lengths[row]) for row in some) > (row_length // 2 if row_length > 64 else 0)
    space = sum(row_length * len(some) for row_length, some in rows.items())
    assert lengths.sum() / space > 0.97


def test_misuse_is_named(tokenizer: Any, params: Any) -> None:
    with pytest.raises(UserError, match=r"max_length is 600.*128"):
        SentenceEncoder(MODEL, tokenizer, _mesh(1), "avg", max_length=600)
    with pytest.raises(UserError, match=r"'mean'.*cls"):
        SentenceEncoder(MODEL, tokenizer, _mesh(1), "mean")
    small = Encoder(Architecture("bert", 7, 32, 2, 4, 48))
    with pytest.raises(UserError, match=r"token id \d+.* 6"):
        SentenceEncoder(small, tokenizer, _mesh(1), "avg").encode(params, WORDS)
