"""Encode texts with a model into a float32 matrix, for training, evaluation and serving.

Sentences are packed into rows of 64, 128, 256, 512 ... tokens, and rows into groups of a nearly constant number of
tokens, so that a model is compiled for a few shapes only.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from simcse_jax.data.packing import Slots, fill, without_first
from simcse_jax.data.prompts import prompt_length
from simcse_jax.encoder.int8 import prepared
from simcse_jax.encoder.model import Encoder, unstack_layers
from simcse_jax.encoder.pooling import is_pooler, known, parts_of, width_of
from simcse_jax.encoder.products import compiler_options
from simcse_jax.group import Group
from simcse_jax.system.errors import UserError
from simcse_jax.system.progress import Progress
from simcse_jax.system.texts import NoTokensError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens of the shortest rows: shorter rows pack worse and are not faster; longer rows are its doublings.
SHORTEST_ROW = 64
FULL_GROUP = 4096  # tokens of a group: enough to fill a chip, and the attention of 8 x 512 tokens fits everywhere
FULL_GROUP_ON_CPU = 512  # with more, the feed-forward layers no longer fit in a CPU's caches
SMALL_GROUP = 128  # tokens of a group if the texts fill at most half of a call
TOKENS_PER_SLOT = 8  # a group has one sentence slot for this many tokens
BLOCK = 65536  # sentences that are tokenised, sorted by length and packed together
CACHED_BLOCKS = 4  # inputs that stay packed: training evaluates the same pairs repeatedly


@dataclasses.dataclass(frozen=True)
class _Call:
    """Hold the groups of one call of the compiled function, one for each device."""

    groups: Group  # NumPy, leading axis [devices]
    members: tuple[np.ndarray, ...]  # for each group int64[n]: the sentences in its first n slots


class SentenceEncoder:
    """Encode lists of texts with one model, tokenizer and pooler on all devices of a mesh.

    model: its dtype is the precision of the computation; float32 products have full precision on every kind of device.
    tokenizer: a Hugging Face fast tokenizer. mesh: groups are spread over all its axes. pooler: see
    `encoder.pooling`. max_length: the number of tokens at which a text is cut, special tokens included; by
    default the model's limit, not the length that it was trained with. prompt: put before each text. include_prompt:
    False leaves the tokens of a prompt, the first special token among them, out of what is pooled. On several hosts,
    each calls `encode` with the same arguments and gets the whole result.
    """

    def __init__(
        self,
        model: Encoder,
        tokenizer: PreTrainedTokenizerBase,
        mesh: jax.sharding.Mesh,
        pooler: str,
        max_length: int | None = None,
        prompt: str = "",
        include_prompt: bool = True,
    ):
        limit = model.architecture.max_length
        if max_length is not None and not 3 <= max_length <= limit:
            raise UserError(
                f"max_length is {max_length}; this model takes 3 to {limit} tokens, for example {min(128, limit)}."
            )
        if not is_pooler(pooler):
            raise UserError(f"Unknown pooler {pooler!r}; known: {known()}.")
        states = model.architecture.num_hidden_layers + 1
        if wrong := [part for part in parts_of(pooler) if part.weights and len(part.weights) != states]:
            raise UserError(
                f"The pooler {pooler!r} weighs {len(wrong[0].weights)} hidden states; this model has {states}."
            )
        # Unrolled: a loop would copy each layer's parameters out of the stack for every group.
        self.model, self.tokenizer, self.mesh, self.pooler = model.clone(unroll=True), tokenizer, mesh, pooler
        self.max_length = limit if max_length is None else max_length
        self.prompt, self.include_prompt = prompt, include_prompt
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._cache: dict[tuple[str, ...], list[_Call]] = {}
        # One host reads the parts of its devices; several hosts need the whole on each device.
        out = self._split if self._split.is_fully_addressable else self._whole
        self._split_up: Any = jax.jit(self._split_params, out_shardings=self._whole)
        options = compiler_options(model.products, mesh.devices.flat[0].platform)
        self._apply: Any = jax.jit(self._encode_groups, out_shardings=out, compiler_options=options)

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> SentenceEncoder:
        """Return the same encoder, compiled programs included, for another tokenizer."""
        other = copy.copy(self)
        other.tokenizer, other._cache = tokenizer, {}
        return other

    def encode(
        self, params: Any, texts: Sequence[str], progress: Progress | None = None, prompt: str | None = None
    ) -> np.ndarray:
        """Return one vector for each text, in the order of the texts, as float32[N, D] on the host.

        params: the model's parameters, on any devices and in any sharding; each device of the mesh gets them whole.
        Equal texts are encoded once. An empty text is encoded as its special tokens. The number of devices and the
        other texts change a vector by rounding only. progress: called with the number of texts that were finished since
        the last call. prompt: in place of that of __init__. Raises NoTokensError for a text without tokens.
        """
        left_out = self._left_out(prompt)
        texts = self._prompted(texts, prompt)
        index: dict[str, int] = {}
        places = np.fromiter((index.setdefault(text, len(index)) for text in texts), np.int64, len(texts))
        width = width_of(self.pooler, self.model.architecture.hidden_size)
        vectors = np.zeros((len(index), width), np.float32)
        repeated = np.bincount(places, minlength=len(index))
        for members, result in self._results(self.placed(params), tuple(index), left_out):
            host = np.asarray(result)
            for group, sentences in enumerate(members):
                vectors[sentences] = host[group, : len(sentences)]
            if progress:
                progress(sum(int(repeated[sentences].sum()) for sentences in members))
        return vectors if len(index) == len(texts) else vectors[places]

    def count_tokens(self, texts: Sequence[str], cut: bool = True, prompt: str | None = None) -> np.ndarray:
        """Return the number of tokens of each text, special tokens included, as int64[N]; cut: at `max_length`.

        prompt: in place of that of __init__.
        """
        texts = self._prompted(texts, prompt)
        return np.array([len(tokens) for tokens in self._tokens(tuple(texts), cut)] if texts else [], np.int64)

    def _prompted(self, texts: Sequence[str], prompt: str | None = None) -> list[str]:
        prompt = self.prompt if prompt is None else prompt
        return [prompt + text for text in texts]

    def _left_out(self, prompt: str | None) -> int:
        """Return the number of first tokens that are not pooled."""
        prompt = self.prompt if prompt is None else prompt
        if self.include_prompt or not prompt:
            return 0
        [tokens] = self._tokens((prompt,))
        return prompt_length(tokens.tolist(), self.tokenizer.all_special_ids)

    def _encode_groups(self, params: Any, groups: Group) -> jax.Array:
        """Return float32[G, N, D] for groups with leading axis [G]; compiled in __init__."""
        exact = jnp.dtype(self.model.dtype).itemsize >= 4
        with jax.default_matmul_precision("highest" if exact else None):
            out = self.model.apply({"params": params}, groups, self.pooler)
        assert isinstance(out, jax.Array)  # Linen returns a pair only when collections are mutable
        return out

    def _split_params(self, params: Any) -> Any:
        """Return each layer's own parameters as its products take them; compiled in __init__."""
        return prepared(unstack_layers(params), self.model.products)

    def placed(self, params: Any) -> Any:
        """Return the parameters on each device of the mesh, split into layers, as `encode` takes them.

        The sharding is always a NamedSharding, since another kind would compile anew.
        """
        if "layers" not in params:
            return params
        devices = self._whole.device_set

        def place(x: Any) -> jax.Array:
            if isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding) and x.sharding.device_set == devices:
                return x
            return jax.make_array_from_callback(x.shape, self._whole, np.asarray(x).__getitem__)

        # The head that predicts tokens in training is not used here.
        used = {name: params[name] for name in params if name != "mlm"}
        return self._split_up(jax.tree.map(place, used))

    def _results(
        self, params: Any, texts: tuple[str, ...], left_out: int
    ) -> Iterator[tuple[list[np.ndarray], jax.Array]]:
        """Yield (sentences of each group, float32[G, N, D]), each once the next call has been dispatched."""
        waiting = None
        for start in range(0, len(texts), BLOCK):
            for call in self._calls(texts[start : start + BLOCK]):
                groups = jax.tree.map(
                    lambda x: jax.make_array_from_callback(x.shape, self._split, x.__getitem__),
                    without_first(call.groups, left_out) if left_out else call.groups,
                )
                result = self._apply(params, groups)
                if waiting:
                    yield waiting
                waiting = [start + sentences for sentences in call.members], result
        if waiting:
            yield waiting

    def _calls(self, texts: tuple[str, ...]) -> list[_Call]:
        """Return the calls that encode these texts, longest rows first; the last inputs are cached."""
        if texts not in self._cache:
            tokens = self._tokens(texts)
            empty = next((text for text, ids in zip(texts, tokens, strict=True) if not len(ids)), None)
            if empty is not None:
                raise NoTokensError(
                    f"The text {empty!r:.80} has no tokens, and this model's tokenizer adds none: it has no vector."
                    "\nLeave such texts out."
                )
            rows = pack_rows(np.array([len(t) for t in tokens]), row_lengths(self.max_length))
            calls = [
                call
                for row_length in sorted(rows, reverse=True)
                for call in self._cut(tokens, rows[row_length], row_length)
            ]
            while len(self._cache) >= CACHED_BLOCKS:
                del self._cache[next(iter(self._cache))]
            self._cache[texts] = calls
        return self._cache[texts]

    def _cut(self, tokens: list[np.ndarray], rows: list[list[int]], row_length: int) -> Iterator[_Call]:
        """Yield the calls that hold these rows; all have one shape."""
        devices = self.mesh.size
        full = FULL_GROUP_ON_CPU if self.mesh.devices.flat[0].platform == "cpu" else FULL_GROUP
        tokens_of_a_group = SMALL_GROUP if len(rows) * row_length <= devices * full // 2 else full
        height = max(tokens_of_a_group // row_length, 1)
        for start in range(0, len(rows), height * devices):
            heights = [rows[at : at + height] for at in range(start, start + height * devices, height)]
            groups = [_group(tokens, part, (height, row_length)) for part in heights]
            members = tuple(np.array([n for row in part for n in row], np.int64) for part in heights)
            yield _Call(jax.tree.map(lambda *x: np.stack(x), *groups), members)

    def _tokens(self, texts: tuple[str, ...], cut: bool = True) -> list[np.ndarray]:
        """Return for each text its token ids, int32[n], with special tokens; cut: at `max_length`."""
        encoded = self.tokenizer(
            list(texts),
            truncation=cut,
            max_length=self.max_length if cut else None,
            verbose=False,  # else it warns of texts that are longer than the model takes
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        tokens = [np.array(ids, np.int32) for ids in encoded["input_ids"]]
        largest = max(int(ids.max(initial=0)) for ids in tokens)
        if largest >= self.model.architecture.vocab_size:
            raise UserError(
                f"The tokenizer gives token id {largest}, but the model's vocabulary ends at "
                f"{self.model.architecture.vocab_size - 1}. Use the model's own tokenizer."
            )
        return tokens


def row_lengths(max_length: int) -> tuple[int, ...]:
    """Return the row lengths for sentences of at most `max_length` tokens: 64, 128, ... up to the first that fits."""
    lengths = [SHORTEST_ROW]
    while lengths[-1] < max_length:
        lengths.append(2 * lengths[-1])
    return tuple(lengths)


def pack_rows(lengths: np.ndarray, choices: tuple[int, ...]) -> dict[int, list[list[int]]]:
    """Pack sentences into rows; return for each row length its rows, each a list of sentences in order.

    Best fit, longest sentence first: a sentence goes where it leaves the least room, and opens a row of the shortest
    length that holds it only if it fits nowhere. So short sentences fill the rows of long ones, and equal lengths,
    which pack badly together, are spread. A row takes at most one sentence for TOKENS_PER_SLOT tokens. lengths: int[N];
    choices: row lengths, ascending.
    """
    rows: dict[int, list[list[int]]] = {}
    room: list[list[tuple[int, list[int]]]] = [[] for _ in range(choices[-1] + 1)]  # open rows by free tokens
    has_room = 0  # bit k is set if room[k] is not empty; finding the best fit is then one shift
    for n in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[n])
        fitting = has_room >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row_length, row = room[free].pop()
            has_room ^= 0 if room[free] else 1 << free
        else:
            free = row_length = next(choice for choice in choices if choice >= length)
            row = []
            rows.setdefault(row_length, []).append(row)
        row.append(n)
        if len(row) < row_length // TOKENS_PER_SLOT:
            room[free - length].append((row_length, row))
            has_room |= 1 << (free - length)
    return rows


def _group(tokens: list[np.ndarray], rows: list[list[int]], shape: tuple[int, int]) -> Group:
    """Return the group [R, T] of these rows, at most R; its slots are filled in the order of the rows."""
    members = [n for row in rows for n in row]
    lengths = [[len(tokens[n]) for n in row] for row in rows]
    starts = [np.cumsum([0, *row[:-1]]) for row in lengths]
    slots = Slots(
        rows=np.repeat(np.arange(len(rows)), np.array([len(row) for row in rows], np.int64)),
        starts=np.concatenate(starts) if starts else np.zeros(0, np.int64),
        used=len(rows),
    )
    return fill(
        [tokens[n] for n in members], slots, np.arange(len(members)), shape, shape[0] * shape[1] // TOKENS_PER_SLOT
    )
