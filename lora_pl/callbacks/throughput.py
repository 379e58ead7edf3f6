"""Sentences and tokens per second, and how much of the device's speed they use."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lora_pl.data.batches import Batch
from lora_pl.model.classifier import LoRAClassifier

FORWARD_AND_BACKWARD = {"head": 1, "lora": 2, "full": 3}
"""Products with a layer's weight per step: the output; the input's gradient; the weight's gradient."""


class Throughput(Callback):
    """Logs `throughput/sentences_per_second`, `.../tokens_per_second` and `.../share_of_peak` over the steps between
    two logs.

    Only real tokens count, no padding; all processes together. The time is that of the steps: making batches,
    validation and checkpoints are left out. The share compares the step's products with the encoder's linear layers,
    per second and process, with what a matrix product of the largest layer's shape reaches on the same device in the
    same type when it runs alone; it is logged for packed batches.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._sentences = self._tokens = self._batches = self._products = 0
        self._started = 0.0
        self._peak = 0.0

    def state_dict(self) -> dict[str, Any]:
        """How many batches there were, so that a resumed run logs where it would have."""
        return {"batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self._batches = state_dict["batches"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock; before the first step, measure the peak."""
        if not self._peak and isinstance(pl_module, LoRAClassifier):
            self._peak = measured_peak(pl_module.encoder, pl_module.computed_dtype, batch.tokens)
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock, and log at the trainer's interval."""
        self._sentences += len(batch)
        self._tokens += batch.tokens
        self._products += step_products(pl_module, batch)
        self._batches += 1
        logs = self._batches % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if logs and pl_module.device.type == "cuda":
            torch.cuda.synchronize()  # the steps so far are on their way, not done
        self._seconds += time.perf_counter() - self._started
        if logs:
            self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        rate = trainer.world_size / self._seconds
        figures = {"sentences_per_second": self._sentences * rate, "tokens_per_second": self._tokens * rate}
        if self._products:
            figures["share_of_peak"] = self._products / self._seconds / self._peak
        for logger in trainer.loggers:
            named = {f"throughput/{name}": value for name, value in figures.items()}
            # the step that Lightning's own points of this batch bear
            logger.log_metrics(named, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
        self._seconds, self._sentences, self._tokens, self._products = 0.0, 0, 0, 0


def step_products(model: LightningModule, batch: Batch) -> int:
    """Multiply-adds with the encoder's linear layers in a training step on a packed batch, else 0."""
    if not isinstance(model, LoRAClassifier) or batch.attention_mask is not None:
        return 0
    return FORWARD_AND_BACKWARD[model.hparams["method"]] * model.base.reader.products(batch.tokens, len(batch))


@torch.no_grad()
def measured_peak(encoder: torch.nn.Module, dtype: torch.dtype, tokens: int, repeats: int = 15) -> float:
    """Multiply-adds per second of (tokens, in) x (in, out) for the encoder's largest linear layer, median of some."""
    layers = (module for module in encoder.modules() if isinstance(module, torch.nn.Linear))
    weight = max(layers, key=lambda layer: layer.weight.numel()).weight
    # a generator of its own: a measurement must not move the run's random numbers
    numbers = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(tokens, weight.shape[1], dtype=dtype, device=weight.device, generator=numbers)
    w = weight.to(dtype)
    return tokens * weight.numel() / median(_seconds(x, w) for _ in range(repeats))


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.nn.functional.linear(x, weight)
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
