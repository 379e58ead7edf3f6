"""How much of the device's speed a training step uses."""

from __future__ import annotations

import time
from statistics import median

import torch

from lora_pl.data.batches import Batch
from lora_pl.model.classifier import LoRAClassifier

FORWARD_AND_BACKWARD = {"head": 1, "lora": 2, "full": 3}
"""Products with a layer's weight per step: the output; the input's gradient; the weight's gradient."""


def step_products(model: LoRAClassifier, batch: Batch) -> int:
    """Multiply-adds with the encoder's linear layers in a training step on a packed batch."""
    return FORWARD_AND_BACKWARD[model.hparams["method"]] * model.base.reader.products(batch.tokens, len(batch))


@torch.no_grad()
def measured_peak(encoder: torch.nn.Module, dtype: torch.dtype, tokens: int, repeats: int = 15) -> float:
    """Multiply-adds per second of (tokens, in) x (in, out) for the encoder's largest linear layer, median of some."""
    layers = (module for module in encoder.modules() if isinstance(module, torch.nn.Linear))
    weight = max(layers, key=lambda layer: layer.weight.numel()).weight
    x = torch.randn(tokens, weight.shape[1], dtype=dtype, device=weight.device)
    w = weight.to(dtype)
    return tokens * weight.numel() / median(_seconds(x, w) for _ in range(repeats))


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.nn.functional.linear(x, weight)
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
