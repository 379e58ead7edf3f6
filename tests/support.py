"""What tests share: tolerances from arithmetic."""

import torch


def rounding(terms: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> float:
    """How far two correct sums of `terms` summands of the size `scale` may lie apart: 8 sqrt(terms) eps(dtype) scale.

    The errors of a sum in any order behave like a random walk of `terms` steps of eps * scale; 8 standard deviations.
    """
    return 8 * terms**0.5 * torch.finfo(dtype).eps * scale


def assert_equal_to_rounding(
    actual: torch.Tensor, expected: torch.Tensor, terms: int, dtype: torch.dtype | None = None
) -> None:
    """Equal but for the order of `terms` additions; the summands are as large as the largest of `expected`."""
    dtype = dtype or expected.dtype
    scale = max(expected.abs().max().item(), torch.finfo(dtype).tiny)
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=rounding(terms, dtype, scale), check_dtype=False, check_stride=False
    )
