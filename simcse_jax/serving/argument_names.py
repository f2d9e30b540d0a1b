"""Name our argument where a call gives another library's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

# What does here what an argument of other libraries does.
THEIR_ARGUMENTS = {
    "model_name_or_path": "name",
    "pooling": "pooler",
    "device": "the variable JAX_PLATFORMS, set before Python starts",
    "sentence": "sentences",
    "sentences_or_file_path": "sentences, which may be the Path of a file",
    "show_progress_bar": "show_progress",
    "normalize_embeddings": "normalize",
    "normalize_to_unit": "normalize",
    "convert_to_numpy": "return_numpy",
    "convert_to_tensor": "return_numpy=False",
    "keepdim": "a list of one sentence",
    "use_faiss": 'kind="hnsw" or "ivfpq"',
    "faiss_fast": 'kind="ivfpq"',
}
Method = TypeVar("Method", bound=Callable[..., Any])


def names_ours(method: Method) -> Method:
    """Let a TypeError for an argument of another library name ours."""

    @functools.wraps(method)
    def call(*args: Any, **options: Any) -> Any:
        for name in options.keys() & THEIR_ARGUMENTS.keys():
            raise TypeError(f"{method.__qualname__}() has no argument {name}. Use {THEIR_ARGUMENTS[name]}.")
        return method(*args, **options)

    return call  # pyright: ignore[reportReturnType]
