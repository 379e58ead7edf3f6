"""One process on one device, without the imports of Lightning's Fabric."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lora_pl.encoder.dtype import OF_PRECISION
from lora_pl.model.precision import device_of, full_name

T = TypeVar("T")


@dataclass(frozen=True)
class OneProcess:
    """What prediction needs of a `Fabric`, with its names."""

    device: torch.device
    """The CPU, or a GPU."""
    precision: str = "32-true"
    """32-true, bf16-mixed or 16-mixed."""

    world_size, global_rank, is_global_zero = 1, 0, True

    @classmethod
    def of(cls, accelerator: str, strategy: str, devices: Any, num_nodes: int, precision: Any) -> OneProcess | None:
        """The process that Fabric's options describe; None if they need Fabric."""
        name = full_name(precision)
        device = device_of(accelerator)
        known = name in ("32-true", "bf16-mixed") or (name, device) == ("16-mixed", "cuda")
        if device is None or not known or strategy != "auto" or devices not in (1, "1") or num_nodes != 1:
            return None
        return cls(torch.device(device), name)

    def launch(self, function: Callable[[OneProcess], T]) -> T:
        """Call it here."""
        return function(self)

    def to_device(self, module: nn.Module) -> None:
        """Move the module."""
        module.to(self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast to the precision's dtype."""
        dtype = OF_PRECISION.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def all_reduce(self, data: Tensor, reduce_op: str) -> Tensor:
        """The process's own."""
        return data

    def barrier(self, name: str) -> None:
        """Nothing: there is no other process to wait for."""
