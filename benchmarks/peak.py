"""How much of the device's speed a training step uses."""

from __future__ import annotations

from functools import partial
from statistics import median

import torch

from benchmarks.device import Device
from lora_pl.data.batches import Batch
from lora_pl.encoder.architectures import architecture_of
from lora_pl.model.classifier import LoRAClassifier

FORWARD_AND_BACKWARD = {"head": 1, "lora": 2, "full": 3}
"""Products with a layer's weight per step: the output; the input's gradient; the weight's gradient."""


def step_products(model: LoRAClassifier, batch: Batch) -> int:
    """Multiply-adds with the encoder's linear layers in a training step on a packed batch.

    Attention's products of queries and keys are left out: they are some 2% on SST-2's short sentences. In the last
    block what follows attention sees first tokens alone.
    """
    total, blocks, after = _weights(model.encoder), architecture_of(model.base.config).blocks, 0
    if blocks:
        *_, last = model.encoder.get_submodule(blocks).children()
        attention = last.get_submodule("attention")
        after = _weights(last) - _weights(attention) + _weights(attention.get_submodule("output"))
    forward = batch.tokens * (total - after) + len(batch) * after
    return FORWARD_AND_BACKWARD[model.hparams["method"]] * forward


def _weights(module: torch.nn.Module) -> int:
    return sum(child.weight.numel() for child in module.modules() if isinstance(child, torch.nn.Linear))


@torch.no_grad()
def measured_peak(encoder: torch.nn.Module, dtype: torch.dtype, tokens: int, repeats: int = 15) -> float:
    """Multiply-adds per second of (tokens, in) x (in, out) for the encoder's largest linear layer, median of some."""
    layers = (module for module in encoder.modules() if isinstance(module, torch.nn.Linear))
    weight = max(layers, key=lambda layer: layer.weight.numel()).weight
    x = torch.randn(tokens, weight.shape[1], dtype=dtype, device=weight.device)
    w = weight.to(dtype)
    product = partial(torch.nn.functional.linear, x, w)
    return tokens * weight.numel() / median(Device(x.device.type).seconds(product) for _ in range(repeats))
