"""How many trials to train together: as many as memory holds, where that is faster than one after another."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

LIMIT = 16
"""The most trials that are packed without being asked."""
PAYS = 0.85
"""Packing pays where a token costs less than this share of what it costs a trial alone."""
MEMORY_SHARE = 0.6
"""Of the free memory, that packs may fill; the rest is for products that are not kept, and for longer batches."""
STEPS = 6


@dataclass(frozen=True)
class Cost:
    """What training steps of one pack cost."""

    seconds_per_token: float
    """Median over some steps."""
    kept_bytes: int
    """Of the tensors that the forward keeps for the backward, in one step."""


def pack_size(alone: Cost, two: Cost, free_bytes: int, limit: int = LIMIT) -> int:
    """How many trials to pack, by what one and two of them cost; 1 where packing does not pay."""
    if two.seconds_per_token > PAYS * alone.seconds_per_token:
        return 1
    each = max(1, two.kept_bytes // 2)
    return max(1, min(limit, int(MEMORY_SHARE * free_bytes / each)))


def free_bytes(device: torch.device) -> int:
    """The memory that the device has left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class PackProbe(Callback):
    """Measures `Cost` over the first steps of a pack's run."""

    def __init__(self) -> None:
        self.free_bytes = 0
        self._costs: list[float] = []
        self._storages: dict[int, int] = {}
        self._started = 0.0
        self._hooks: Any = None

    @property
    def cost(self) -> Cost:
        """What was measured; the first step, which also makes caches, does not count."""
        return Cost(median(self._costs[1:]), sum(self._storages.values()))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock; in the first step, watch what is kept."""
        if not self._costs:
            self.free_bytes = free_bytes(pl_module.device)
            self._hooks = torch.autograd.graph.saved_tensors_hooks(self._noted, lambda tensor: tensor)
            self._hooks.__enter__()
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it."""
        if self._hooks is not None:
            self._hooks.__exit__()
            self._hooks = None
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self._costs.append((time.perf_counter() - self._started) / sum(own.tokens for own in batch))

    def _noted(self, tensor: Tensor) -> Tensor:
        if not tensor.requires_grad or not tensor.is_leaf:  # weights are kept in any case
            storage = tensor.untyped_storage()
            self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor
