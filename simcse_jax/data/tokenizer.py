"""Load the fast tokenizer of a model folder; train a WordPiece for models that start from random weights."""

import importlib.util
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import TRANSFORMER_SETTINGS
from simcse_jax.system.json_file import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# SentencePiece models as XLM-RoBERTa and DeBERTa call them.
SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "spm.model")
TOKENIZER_FILES = (
    *(("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt")),
    *((name,) for name in SENTENCEPIECE_FILES),
)
ALL_TOKENIZER_FILES = (
    *itertools.chain(*TOKENIZER_FILES),
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

# Left open, transformers asks on stdin whether to run a folder's code, and a line of a user's queries may answer.
_OWN_FILES: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def load_tokenizer(folder: str | os.PathLike[str]) -> "PreTrainedTokenizerFast":
    """Return the fast tokenizer of a model folder, with its padding, first and last tokens known.

    Needs tokenizer.json, vocab.txt (BERT), vocab.json + merges.txt (RoBERTa) or, with the package sentencepiece, its
    model; config.json or tokenizer_config.json should say the family, else the vocabulary file does. torch is not
    needed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"The tokenizer folder {str(folder)!r} does not exist.")
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        wanted = ", or ".join(" + ".join(names) for names in TOKENIZER_FILES)
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        raise UserError(f"{folder} holds no tokenizer.\n  wanted: {wanted}\n  found: {found}\nCopy them there.")
    _require_sentencepiece(folder)
    # Without torch, transformers prints advice that does not apply here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        tokenizer = _load(folder)
    except Exception as error:  # a broken tokenizer.json surfaces as almost any exception
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{folder}/tokenizer_config.json names code of its own (auto_map), and no code of a folder runs here.\n"
                "Use a model whose tokenizer is one of transformers' own, for example BERT's or RoBERTa's."
            ) from error
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        if isinstance(error, ImportError) and "sentencepiece" not in reason:  # MeCab, Jieba and others
            raise UserError(_slow(folder)) from error
        raise UserError(
            f"The tokenizer in {folder} does not load: {type(error).__name__}: {reason}\n"
            "Its files may be cut short, or of another model: copy them again from the model's source."
        ) from error
    if not tokenizer.is_fast:
        raise UserError(_slow(folder))
    missing = [name for name in ("pad_token", "cls_token", "sep_token") if getattr(tokenizer, name) is None]
    if missing:
        raise UserError(
            f"The tokenizer in {folder} has no {', '.join(missing)}.\n"
            "Add tokenizer_config.json (or config.json with model_type) of the model that it belongs to."
        )
    if not tokenizer("")["input_ids"]:
        raise UserError(
            f"The tokenizer in {folder} puts no {tokenizer.cls_token} and {tokenizer.sep_token} around a text: its "
            "tokenizer.json has no post_processor.\nCopy tokenizer.json again from the model's source."
        )
    return _lower_cased(tokenizer) if lower_cases(folder) else tokenizer


def _require_sentencepiece(folder: Path) -> None:
    """Raise UserError if the tokenizer is a SentencePiece model alone, and the package that reads it is missing."""
    found = [name for names in TOKENIZER_FILES for name in names if (folder / name).is_file()]
    if set(found) <= set(SENTENCEPIECE_FILES) and importlib.util.find_spec("sentencepiece") is None:
        raise UserError(
            f"{folder} has its tokenizer as {found[0]} only, which the package sentencepiece reads.\n"
            "Run `pip install sentencepiece`, or copy tokenizer.json there from a model with the same tokenizer."
        )


def _slow(folder: Path) -> str:
    return (
        f"The tokenizer in {folder} has no fast version: it splits text by a program, and no tokenizer.json can hold "
        "that.\nUse a model with a fast tokenizer: XLM-RoBERTa and multilingual BERT know most languages."
    )


def transformer_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file in which sentence-transformers describes an encoder, and its content; empty if there is none."""
    paths = [folder / name for name in TRANSFORMER_SETTINGS]
    path = next((path for path in paths if path.is_file()), paths[0])
    return path, read_json(path) if path.is_file() else {}


def lower_cases(folder: Path) -> bool:
    """Return do_lower_case of `transformer_settings`: whether texts are lower-cased, whatever the tokenizer does."""
    path, settings = transformer_settings(folder)
    value = settings.get("do_lower_case", False)
    if not isinstance(value, bool):
        raise UserError(f"{path}: do_lower_case = {value!r} must be true or false.")
    return value


def _lower_cased(tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedTokenizerFast":
    """Return a tokenizer that lower-cases first, as sentence-transformers does, of a class that saves this with it."""
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast

    backend = tokenizer.backend_tokenizer
    steps = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
    backend.normalizer = normalizers.Sequence(steps)
    limit = tokenizer.model_max_length
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=limit, **tokenizer.special_tokens_map)


def _load(folder: Path) -> "PreTrainedTokenizerFast":
    """Return the tokenizer as transformers reads it; where nothing tells the family, the vocabulary file decides."""
    has = {path.name for path in folder.iterdir()}
    if "tokenizer_config.json" in has or _model_type(folder):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(folder), **_OWN_FILES)
    from transformers import BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

    if "tokenizer.json" not in has:
        family = BertTokenizer if "vocab.txt" in has else RobertaTokenizer
        return family.from_pretrained(str(folder), **_OWN_FILES)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    for names in (("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), ("<pad>", "<unk>", "<s>", "</s>", "<mask>")):
        if all(name in vocabulary for name in names):
            roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
            tokenizer.add_special_tokens(dict(zip(roles, names, strict=True)))
            break
    return tokenizer


def _model_type(folder: Path) -> str | None:
    """Return the model_type of config.json; None without that file or that key."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    return read_json(path).get("model_type")


def train_wordpiece(sentences: Iterable[str], vocab_size: int, out: str | os.PathLike[str]) -> None:
    """Write tokenizer.json, vocab.txt and tokenizer_config.json of a lower-cased WordPiece into the folder `out`.

    At most `vocab_size` tokens; [PAD] is 0. The same sentences give the same files, byte for byte.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    if vocab_size < 16:
        raise UserError(f"A WordPiece vocabulary of {vocab_size} tokens is too small: 16 at least, usually 8000.")
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for sentence in sentences:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(sentence)))
    if not words:
        raise UserError("No text to train a WordPiece vocabulary on: every sentence is empty.")
    tokens = _wordpiece_tokens(words, vocab_size)

    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": 512,
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS},
    }
    (out / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(out / "tokenizer.json"))


def _wordpiece_tokens(words: Counter[str], vocab_size: int) -> list[str]:
    """Return at most vocab_size special tokens, characters, continuing characters, then learned pieces by rank.

    The trainer of `tokenizers` numbers the continuing characters in hash order and breaks ties by number, so two runs
    differ. Handing it those characters as special tokens, in sorted order, fixes both.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    # A character costs up to two tokens (at the start of a word and inside); half of the vocabulary is left to pieces.
    kept = set(sorted(counts, key=lambda c: (-counts[c], c))[: max(1, (vocab_size - len(SPECIAL_TOKENS)) // 4)])
    usable = {word: count for word, count in words.items() if kept.issuperset(word)}
    firsts = sorted({word[0] for word in usable})
    inner = sorted({f"##{character}" for word in usable for character in word[1:]})

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=[*SPECIAL_TOKENS, *inner], show_progress=False
    )
    tokenizer.train_from_iterator(_repeated(usable), trainer)
    learned = tokenizer.get_vocab()
    base = [*SPECIAL_TOKENS, *firsts, *inner]
    pieces = sorted(learned.keys() - set(base), key=learned.__getitem__)
    return [*base, *pieces][:vocab_size]


def _repeated(words: dict[str, int]) -> Iterator[str]:
    """Yield each word as often as it was counted, in lines of at most 1000."""
    for word in sorted(words):
        for start in range(0, words[word], 1000):
            yield " ".join([word] * min(1000, words[word] - start))
