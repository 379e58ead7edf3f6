"""Copies between devices that nothing waits for."""

from __future__ import annotations

import torch
from torch import Tensor


def transfer(x: Tensor, device: torch.device | str) -> Tensor:
    """x on `device`. From the CPU to a GPU the copy starts in pinned memory and is queued behind the work before it;
    from pageable memory the process would wait for it."""
    to_gpu = torch.device(device).type == "cuda" and x.device.type == "cpu"
    return x.pin_memory().to(device, non_blocking=True) if to_gpu else x.to(device)
