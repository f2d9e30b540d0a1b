"""Run sentence-transformers' side of `benchmarks.train_speed`: its own trainer, on (sentence, the same sentence) pairs.

The trainer tokenises as it goes, so its time includes that. It encodes the two views one after the other.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset

from benchmarks import process_memory
from benchmarks.train_work import CLIP_NORM, LEARNING_RATE, TEMPERATURE, Work
from simcse_jax.system.errors import UserError

if importlib.util.find_spec("accelerate") is None:
    raise UserError("sentence-transformers trains with accelerate only.\npip install 'sentence-transformers[train]'")

import sentence_transformers
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar


class Side:
    """Hold a model in training. Each call of `steps` starts a new training with the same weights."""

    def __init__(self, work: Work):
        self.work = work
        disable_progress_bar()
        dropout = {"hidden_dropout_prob": work.dropout, "attention_probs_dropout_prob": work.dropout}
        self.model = SentenceTransformer(
            str(work.model), local_files_only=True, trust_remote_code=False, config_kwargs=dropout
        )
        self.model.max_seq_length = work.max_length
        self.loss = MultipleNegativesRankingLoss(self.model, scale=1 / TEMPERATURE)

    def about(self) -> str:
        return f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}"

    def first_step(self) -> float:
        """Return the seconds of a first step."""
        clock = self._trained(0, 1)
        return clock.ended[0] - clock.began

    def steps(self, first: int, last: int) -> float:
        """Return the seconds of these steps, after one that is not counted, in the trainer's own order of sentences."""
        ended = self._trained(first - 1, last).ended
        return ended[-1] - ended[0]

    def peak_memory(self) -> int:
        """Return the peak bytes of the device, or of the process where the device is a CPU."""
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else process_memory.peak()

    def _trained(self, first: int, last: int) -> _Clock:
        texts, clock = self.work.texts(first, last), _Clock()
        with tempfile.TemporaryDirectory(dir=self.work.folder) as folder:
            arguments = SentenceTransformerTrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=self.work.batch_size,
                max_steps=last - first,
                learning_rate=LEARNING_RATE,
                weight_decay=0.0,
                max_grad_norm=CLIP_NORM,
                optim="adamw_torch_fused",
                bf16=self.work.dtype == "bfloat16",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                dataloader_pin_memory=torch.cuda.is_available(),
                disable_tqdm=True,
            )
            pairs = Dataset.from_dict({"anchor": texts, "positive": texts})
            trainer = SentenceTransformerTrainer(
                self.model, args=arguments, train_dataset=pairs, loss=self.loss, callbacks=[clock]
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return clock


class _Clock(TrainerCallback):
    """Record when the first step began and when each step ended."""

    def __init__(self) -> None:
        self.began, self.ended = 0.0, []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = self.began or _now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended.append(_now())


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
