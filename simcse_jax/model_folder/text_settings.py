"""Read what a folder says of texts: where they are cut, and what comes before them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from simcse_jax.data.prompts import parse_prompts
from simcse_jax.data.tokenizer import transformer_settings
from simcse_jax.model_folder.module_list import encoder_folder, list_modules, require_known
from simcse_jax.system.errors import UserError
from simcse_jax.system.json_file import read_json
from simcse_jax.system.notes import note

SETTINGS = "config_sentence_transformers.json"
_TOKENIZER_SETTINGS = "tokenizer_config.json"
# Options of loading a model or its tokenizer that change no vector, but for rounding, or are read below.
_KNOWN_OPTIONS = {"output_hidden_states", "add_pooling_layer", "attn_implementation", "dtype", "torch_dtype"}
_KNOWN_OPTIONS |= {"use_fast", "trust_remote_code", "model_max_length"}
# Settings of other kinds of models, and of the tokenizer's place, that change vectors if they are not null.
_NOT_SUPPORTED = ("tokenizer_name_or_path", "query_length", "document_length", "query_prefix", "document_prefix")
_NOT_SUPPORTED += ("query_expansion",)
# What other settings must be, where they are given.
_FIXED: dict[str, Any] = {
    "model_type": "SentenceTransformer",
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
}
_KNOWN = ("__version__", "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "requirements")
_KNOWN_OF_ENCODER = ("max_seq_length", "do_lower_case", "unpad_inputs")

_ROLES = {"query": ("query",), "document": ("document", "passage", "corpus")}


class TextSettings(NamedTuple):
    """Hold what a folder says of texts, by the keys of sentence-transformers; see also `lower_cases`."""

    max_seq_length: int | None = None  # tokens at which texts are cut; None: the model's limit
    prompts: Mapping[str, str] = {}
    default_prompt_name: str | None = None
    include_prompt: bool = True  # whether the tokens of a prompt are pooled with the others

    @property
    def prompt(self) -> str:
        """Return what comes before each text."""
        return self.prompts[self.default_prompt_name] if self.default_prompt_name else ""

    def with_default(self, prompt: str) -> TextSettings:
        """Return the settings with this prompt as the default; "" for none."""
        if prompt == self.prompt:
            return self
        name = next((name for name, words in self.prompts.items() if words == prompt), "asked for") if prompt else None
        return self._replace(prompts={**self.prompts, **({name: prompt} if name else {})}, default_prompt_name=name)

    @property
    def role_prompts(self) -> dict[str, str]:
        """Return the prompt of a "query" and of a "document", where it is another than that of any text.

        By their names, as sentence-transformers' encode_query and encode_document look for them; none, where there is
        no such name.
        """
        found = {
            role: next((self.prompts[name] for name in names if name in self.prompts), "")
            for role, names in _ROLES.items()
        }
        return {role: prompt for role, prompt in found.items() if prompt != self.prompt}


PLAIN = TextSettings()
QUERY, DOCUMENT = "query", "document"  # what sentence-transformers' encode_query and encode_document look for


def trained_texts(prompts_key: str, include_prompt: bool, of_sources: Mapping[str, str]) -> TextSettings:
    """Return what a run's model says of texts: the prompts of its first two columns, the first as the default.

    prompts_key: the value of data.prompts. include_prompt: that of data.include_prompt. of_sources: the values of
    data.sources.NAME.prompts by NAME, whose prompts come beside them, as NAME and NAME_document.
    """
    named: dict[str, str] = {}
    for (query, document), value in (
        *(((name, f"{name}_{DOCUMENT}"), value) for name, value in of_sources.items()),
        ((QUERY, DOCUMENT), prompts_key),
    ):
        if prompts := parse_prompts(value):
            named |= {query: prompts[0], document: prompts[min(1, len(prompts) - 1)]}
    default = parse_prompts(prompts_key)[:1]
    return TextSettings(None, named, QUERY if any(default) else None, include_prompt) if named else PLAIN


def read_text_settings(folder: Path, limit: int) -> TextSettings:
    """Return what a model folder says of texts; UserError where a setting is malformed, or not supported.

    limit: the most tokens that the model takes.
    """
    path = folder / SETTINGS
    settings = read_json(path) if path.is_file() else {}
    poolings = [module.file for module in list_modules(folder) if module.kind == "Pooling"]
    inner = encoder_folder(folder)
    of_encoder, transformer = transformer_settings(inner)
    options = [key for key in transformer if key.endswith(("_args", "_kwargs"))]  # see `_length`
    for file, content, known in ((path, settings, _KNOWN), (of_encoder, transformer, (*_KNOWN_OF_ENCODER, *options))):
        if key := next((key for key in _NOT_SUPPORTED if content.get(key) is not None), None):
            raise UserError(
                f"{file}: {key} = {content[key]!r} changes tokens or texts, which is not supported.\nTo use the "
                "model without it, remove it in a copy of the folder, with its tokenizer's files beside config.json."
            )
        for key, only in _FIXED.items():
            if content.get(key) not in (None, only):
                raise UserError(
                    f"{file}: {key} = {content[key]!r} is not supported; only {only!r} is.\nUse the model with "
                    "sentence-transformers."
                )
        require_known(file, content, (*known, *_FIXED, *_NOT_SUPPORTED))
    if (similarity := settings.get("similarity_fn_name")) not in (None, "cosine"):
        note(f"{path}: similarity_fn_name = {similarity!r} changes no vector; similarities here are cosines.")
    found = TextSettings(
        _length(inner, limit),
        settings.get("prompts") or {},
        settings.get("default_prompt_name"),
        all(_includes_prompt(pooling) for pooling in poolings if pooling.is_file()),
    )
    prompts, default = found.prompts, found.default_prompt_name
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise UserError(f"{path}: prompts = {prompts!r} must be an object of texts.")
    if default is not None and not (isinstance(default, str) and isinstance(prompts.get(default), str)):
        raise UserError(
            f"{path}: default_prompt_name = {default!r} is not among prompts ({', '.join(prompts)}).\n"
            "Name one of these, or set it to null: then no prompt is put before texts."
        )
    return found


def _includes_prompt(file: Path) -> bool:
    """Return whether a Pooling module pools the tokens of a prompt; UserError where that is neither true nor false."""
    value = read_json(file).get("include_prompt", True)
    if not isinstance(value, bool):
        raise UserError(
            f"{file}: include_prompt = {value!r:.80} must be true or false.\nIf a prompt's tokens are pooled with the "
            "others, set it to true in a copy of the folder."
        )
    return value


def _length(folder: Path, limit: int) -> int | None:
    """Return the tokens at which an encoder's folder says to cut texts, at most `limit`; None if it does not say.

    As in sentence-transformers, max_seq_length counts before the tokenizer's model_max_length, where its later releases
    keep the number. UserError for a wrong number, and for options that would load another model or tokenizer.
    """
    path, settings = transformer_settings(folder)
    options = {key: settings[key] for key in settings if key.endswith(("_args", "_kwargs")) and settings[key]}
    for key, changes in options.items():
        if not isinstance(changes, dict) or changes.keys() - _KNOWN_OPTIONS:
            raise UserError(
                f"{path}: {key} = {changes!r} changes how the model or its tokenizer is loaded, which is not supported."
                f"\nIn a copy of the folder, move these keys into config.json or {_TOKENIZER_SETTINGS}."
            )
    of_tokenizer = folder / _TOKENIZER_SETTINGS
    tokenizer = read_json(of_tokenizer) if of_tokenizer.is_file() else {}
    stated = (
        *((path, options.get(key, {}), "model_max_length") for key in ("processor_kwargs", "tokenizer_args")),
        (path, settings, "max_seq_length"),
        *((of_tokenizer, tokenizer, key) for key in ("model_max_length", "max_len")),
    )
    for file, content, key in stated:
        length = content.get(key)
        if length is None:
            continue
        if not isinstance(length, int | float) or length < 3 or length % 1:
            raise UserError(f"{file}: {key} = {length!r} must be a whole number of at least 3, or null.")
        return int(min(length, limit))
    return None
