"""Plan without data: stand-ins for tokenised texts, of which a plan needs nothing but the lengths."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from simcse_jax.config.keys import split_list
from simcse_jax.config.schema import Config, DataConfig
from simcse_jax.data.batches import SAMPLED_BATCHES, Batches
from simcse_jax.data.corpus_report import CorpusReport
from simcse_jax.data.positives import POSITIVES
from simcse_jax.data.tokenizer import load_tokenizer, train_wordpiece
from simcse_jax.data.vocabulary import id_count
from simcse_jax.system.errors import UserError
from simcse_jax.training.feeding import load_data, make_batches
from simcse_jax.training.model import write_tokenizer

SHORTEST = 3  # tokens of a text of one word: two special ones around it
STAND_INS = ("Any text will do, since a plan reads no tokens.",)  # what a tokenizer is trained on instead of the data
TEXTS = 3  # of an example of pairs or triplets, where data.columns does not say: sentence, positive, hard negative


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Hold mean and standard deviation of the tokens of a text, after the cut at data.max_length."""

    mean: float
    deviation: float = 0.0

    def draw(self, shape: tuple[int, ...], longest: int, seed: int) -> np.ndarray:
        """Return int32 lengths from SHORTEST to `longest`, of the beta distribution with this mean and deviation."""
        if not self.deviation:
            return np.full(shape, round(self.mean), np.int32)
        span = longest - SHORTEST
        mean, variance = (self.mean - SHORTEST) / span, (self.deviation / span) ** 2
        total = mean * (1 - mean) / variance - 1
        shares = np.random.default_rng(seed).beta(mean * total, (1 - mean) * total, shape)
        return np.rint(SHORTEST + span * shares).astype(np.int32)


def parse_lengths(value: str, data: DataConfig) -> Lengths | None:
    """Return the lengths that the flag --lengths gives: "MEAN,DEVIATION", or "max": every text at data.max_length.

    "" is None where there are data to read, and "max" where data.files is empty. UserError for what cannot be.
    """
    longest = data.max_length
    if value == "max" or (not value and not data.files):
        return Lengths(longest)
    if not value:
        return None
    mean, _, deviation = value.partition(",")
    try:
        found = Lengths(float(mean), float(deviation or 0))
    except ValueError:
        raise UserError(f"--lengths={value}: must be max, MEAN or MEAN,DEVIATION, such as 21.9,8.9.") from None
    if not SHORTEST <= found.mean <= longest:
        raise UserError(
            f"--lengths={value}: the mean must be from {SHORTEST} to data.max_length = {longest}, as longer texts are "
            "cut.\nFor example --lengths=max, or --config.data.max_length for longer ones."
        )
    widest = ((found.mean - SHORTEST) * (longest - found.mean)) ** 0.5
    if not 0 <= found.deviation < max(widest, 1e-9):
        raise UserError(
            f"--lengths={value}: lengths from {SHORTEST} to {longest} with mean {found.mean:g} have a standard "
            f"deviation below {widest:.1f}.\nFor example --lengths={found.mean:g},{widest / 2:.1f}"
        )
    return found


def describe(lengths: Lengths, config: Config) -> str:
    """Return a line on what a plan without data assumes."""
    texts = max(len(_columns(part.data)) for part in config.by_source.values())
    of = f"{lengths.mean:g} tokens each"
    if lengths.deviation:
        of = f"{lengths.mean:g} tokens on average, standard deviation {lengths.deviation:g}"
    several = f", {'up to ' * bool(config.sources)}{texts} an example (data.columns)" * (texts > 1)
    return f"no data is read; assumed: texts of {of}, at most {config.data.max_length}{several} (--lengths)"


class AssumedTexts:
    """Stand for a corpus of E examples with texts of these lengths; it has no tokens."""

    def __init__(self, examples: int, lengths: Lengths, data: DataConfig, seed: int):
        self.columns = _columns(data)
        self.lengths = lengths.draw((examples, len(self.columns)), data.max_length, seed)
        self.hashes = np.arange(self.lengths.size, dtype=np.uint64).reshape(self.lengths.shape)
        self.scores = np.zeros(examples, np.float32) if data.scores else None
        self.documents = np.arange(examples, dtype=np.int32) // 100
        self.report = CorpusReport(
            files=(),
            columns=self.columns,
            ignored_columns=(),
            examples=examples,
            empties=0,
            duplicates=0,
            documents=int(self.documents[-1]) + 2,  # one document alone would be none
            max_length=data.max_length,
            truncated=0,
            truncated_share=0.0,
            mean_length=float(self.lengths.mean()),
            histogram=(),
            other_splits=0,
            missing=0,
            unknown_share=0.0,
        )

    def __len__(self) -> int:
        return len(self.lengths)


def _columns(data: DataConfig) -> tuple[str, ...]:
    several = POSITIVES[data.positive].several_columns
    names = split_list(data.columns) or [f"text {n}" for n in range(1, (TEXTS if several else 1) + 1)]
    return tuple(names)


def load_plan_data(config: Config, folder: Path | None, lengths: Lengths | None) -> tuple[Any, int, int, Batches]:
    """Return (tokenizer, its entries, views, batches) of a run, or what stands for them where `lengths` are given.

    A tokenizer that would be trained on the data is then trained on another text and counts as full.
    """
    trains = lengths is not None and config.model.tokenizer == "train"
    with tempfile.TemporaryDirectory() as draft:
        if trains:
            train_wordpiece(STAND_INS, config.model.vocab_size, draft)
        else:
            write_tokenizer(config, folder, Path(draft))
        tokenizer = load_tokenizer(draft)
    if lengths is None:
        corpora: Any = load_data(config, tokenizer)
    else:
        examples, seed = SAMPLED_BATCHES * config.train.batch_size, config.train.seed
        parts = config.by_source.items()
        corpora = {name: AssumedTexts(examples, lengths, part.data, seed) for name, part in parts}
    views, batches = make_batches(config, tokenizer, corpora)
    return tokenizer, config.model.vocab_size if trains else id_count(tokenizer), views, batches
