"""Find the teacher's vectors of a run's texts: computed once, kept in the cache, and read memory-mapped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator

import numpy as np
from filelock import FileLock

from simcse_jax.config.keys import split_list
from simcse_jax.config.schema import Config
from simcse_jax.data.corpus import Corpus
from simcse_jax.data.text_vectors import Missing, TextVectors, VectorSource, wanted_texts, write_text_vectors
from simcse_jax.data.texts import in_blocks
from simcse_jax.data.vector_files import SUFFIX, VectorFiles
from simcse_jax.embedding_model import open_model
from simcse_jax.system.cache import cache_folder
from simcse_jax.training.feeding import read_texts

FORMAT = 1  # raised by every change of what is kept
BLOCK = 16384  # texts that are encoded, and then kept, at a time


class TeacherModel:
    """Give texts the vectors of a model; a `VectorSource`."""

    def __init__(self, config: Config):
        """Open the model that teacher.name names; its weights are read when they are first needed."""
        self._config = config
        self._model = open_model(config.teacher.name, products=config.teacher.products)
        self.name, self.width = self._model.name, self._model.width

    @property
    def fingerprint(self) -> str:
        """Return a hex digest of the weights, of the folder's settings, and of how texts are cut and encoded."""
        model = self._model
        parts = [model.fingerprint, model.pooler, model.precision, model.max_length]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def blocks(self, missing: Missing) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield texts of the data that are missing, and their vectors float32[n, width]."""
        for block in in_blocks(read_texts(self._config), BLOCK):
            if chosen := [text for text, is_missing in zip(block, missing(block), strict=True) if is_missing]:
                yield chosen, self._model.encode(chosen)


def open_teacher(config: Config) -> VectorSource | None:
    """Return what gives texts their vectors, None without a teacher; raises UserError where it cannot be opened."""
    names = split_list(config.teacher.name)
    if not names:
        return None
    return VectorFiles(names) if all(name.endswith(SUFFIX) for name in names) else TeacherModel(config)


def load_teacher_vectors(config: Config, corpora: Iterable[Corpus]) -> TextVectors | None:
    """Return the vectors of all texts of the data, made the first time and read from the cache later.

    The cache's key is the fingerprint of the teacher and of the set of texts. Several processes may call this at once:
    one makes them, and the others wait for it.
    """
    source = open_teacher(config)
    if source is None:
        return None
    wanted = wanted_texts(np.concatenate([corpus.hashes.ravel() for corpus in corpora]))
    fingerprint = source.fingerprint
    digest = hashlib.blake2b(f"{FORMAT} {fingerprint}".encode(), digest_size=16)
    digest.update(wanted.tobytes())
    folder = cache_folder("teachers", config.data.cache_dir or None) / digest.hexdigest()
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        try:
            return TextVectors(folder, fingerprint).reduced(config.teacher.width)
        except (OSError, ValueError):  # none yet, or damaged
            shutil.rmtree(folder, ignore_errors=True)
        write_text_vectors(folder, wanted, source)
    return TextVectors(folder, fingerprint).reduced(config.teacher.width)
