"""What tests share."""

import torch


def rounding(terms: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> float:
    """What sums of `terms` terms of size `scale` may differ by when they are added in another order."""
    return float(8 * terms**0.5 * torch.finfo(dtype).eps * scale)
