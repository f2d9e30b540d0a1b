"""Run PyTorch's side of `benchmarks.train_speed`: SimCSE's step as its users write it, with PyTorch's fast options.

transformers' model with PyTorch's own attention kernels, the batch padded to its longest sentence, both views in
one pass, fused AdamW; bfloat16 by autocast.
"""

from __future__ import annotations

import time

import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoConfig, AutoModel
from transformers.utils.logging import disable_progress_bar

from benchmarks import process_memory
from benchmarks.train_work import CLIP_NORM, LEARNING_RATE, TEMPERATURE, VIEWS, Work

# Keys for the rate of dropout in the config.json of one family or another.
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")
RATES += ("embedding_dropout", "mlp_dropout")
Batch = tuple[torch.Tensor, torch.Tensor]


class Side:
    """Hold a model in training, and its current state.

    attention: "sdpa" or "eager", as transformers names it. autocast: to bfloat16, also where the work is in float32.
    """

    def __init__(self, work: Work, compiled: bool = False, attention: str = "sdpa", autocast: bool = False):
        self.work, self.autocast = work, autocast or work.dtype == "bfloat16"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        self.model = _Encoder(work, attention).to(self.device).train()
        self.parameters = list(self.model.parameters())
        self.loss = torch.compile(self._loss) if compiled else self._loss
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: max(1 - step / work.steps, 0.0))
        self.seen: set[torch.Size] = set()

    def about(self) -> str:
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        return f"torch {torch.__version__}, {name}"

    def losses(self, steps: int) -> list[tuple[float, float]]:
        """Return (loss, norm of the gradient before clipping) of the first steps."""
        figures = [self._step(batch) for batch in self._batches(0, steps)]
        return [(float(loss), float(norm)) for loss, norm in figures]

    def first_step(self) -> float:
        """Return the seconds of step 0, compilation included."""
        (batch,) = self._batches(0, 1)
        self.seen.add(batch[0].shape)
        return self._seconds([batch])

    def steps(self, first: int, last: int) -> float:
        """Return the seconds of steps first <= step < last; their batches are on the device and their shapes known."""
        batches = self._batches(first, last)
        for batch in batches:
            if batch[0].shape not in self.seen:
                self.seen.add(batch[0].shape)
                self._step(batch)
        return self._seconds(batches)

    def peak_memory(self) -> int:
        """Return the peak bytes of the device, or of the process where the device is a CPU."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else process_memory.peak()

    def _batches(self, first: int, last: int) -> list[Batch]:
        padded = [self.work.padded(step) for step in range(first, last)]
        return [(torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)) for ids, mask in padded]

    def _seconds(self, batches: list[Batch]) -> float:
        self._wait()
        start = time.perf_counter()
        for batch in batches:
            self._step(batch)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _loss(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            z = self.model(ids, mask)
        anchors, positives = functional.normalize(z.float(), dim=-1).chunk(VIEWS)
        cosines = anchors @ positives.T
        return functional.cross_entropy(cosines / TEMPERATURE, torch.arange(len(cosines), device=self.device))

    def _step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(*batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach(), norm


class _Encoder(torch.nn.Module):
    """Return a sentence's embedding: by the model's own head on its first token, or by that of the Dense module."""

    def __init__(self, work: Work, attention: str):
        super().__init__()
        disable_progress_bar()
        config = AutoConfig.from_pretrained(work.model)
        for rate in RATES:
            if hasattr(config, rate):
                setattr(config, rate, work.dropout)
        # MPNet has plain attention only.
        plain_only = config.model_type == "mpnet"
        self.encoder = AutoModel.from_pretrained(
            work.model, config=config, attn_implementation="eager" if plain_only else attention
        )
        self.head = None
        if getattr(self.encoder, "pooler", None) is None:
            tensors = load_file(work.model / "2_Dense" / "model.safetensors")
            outputs, inputs = tensors["linear.weight"].shape
            self.head = torch.nn.Linear(inputs, outputs)
            self.head.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in tensors.items()})

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out = self.encoder(input_ids=ids, attention_mask=mask)
        return out.pooler_output if self.head is None else torch.tanh(self.head(out.last_hidden_state[:, 0]))
