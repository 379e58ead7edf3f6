"""Weight-decomposed LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lora_pl.lora.adapter import Factors, LoRA
from lora_pl.lora.int8 import Int8Weight

if TYPE_CHECKING:
    from lora_pl.lora.config import LoRAConfig


class DoRA(LoRA):
    r"""W = m (W_0 + s B A) / ||W_0 + s B A||, with the norm of each row (Liu et al., 2024, Section 4).

    The magnitude m (out,) is trained and starts at ||W_0||, so that the layer starts as its base exactly. The norm is
    a constant in the backward (Section 4.3). No product of the size of W is formed for it:

    .. math:: ||W_0 + s B A||^2 = ||W_0||^2 + 2 s \sum (W_0 A^T) \odot B + s^2 \sum (B (A A^T)) \odot B

    with sums over r.
    """

    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {**LoRA.axes, "lora_magnitude_vector": ("out",)}
    peft_settings: ClassVar[Mapping[str, Any] | None] = {"use_dora": True}
    peft_names: ClassVar[Mapping[str, str]] = {**LoRA.peft_names, "lora_magnitude_vector": "lora_magnitude_vector"}

    base_norm: Tensor

    def __init__(self, base: nn.Linear, config: LoRAConfig) -> None:
        super().__init__(base, config)
        # (out,): ||W_0||^2, of the weight before it is cast to half precision
        self.register_buffer("base_norm", _squares(base.weight), persistent=False)
        self.lora_magnitude_vector = nn.Parameter(self.base_norm.sqrt())

    def refresh(self, weight: Tensor) -> None:
        """Take the norm of another W_0; that of the same one, cast, differs by rounding alone and is not taken.

        An `Int8Weight` never changes.
        """
        if isinstance(weight, Int8Weight):
            return
        squares = _squares(weight).to(self.base_norm)
        if not weight.is_meta and not torch.allclose(squares, self.base_norm, 2 * torch.finfo(weight.dtype).eps, 0):
            self.base_norm.copy_(squares)

    def factors(self, weight: Tensor, dtype: torch.dtype) -> Factors:
        """LoRA's, and the gain m / ||W_0 + s B A||."""
        factors = super().factors(weight, dtype)
        return factors._replace(gain=self.lora_magnitude_vector.to(dtype) / self._norm(weight, factors))

    @torch.no_grad()
    def _norm(self, weight: Tensor, factors: Factors) -> Tensor:
        """(out,): the norm of each row of W_0 + s B A, with the factors of LoRA."""
        a, b = factors.a * factors.scale, factors.b
        with torch.autocast(weight.device.type, enabled=False):
            crossed = (weight.to(a.dtype) @ a.t() * b).sum(1)
            squared = (b @ (a @ a.t()) * b).sum(1)
            squares = self.base_norm.to(a.dtype) + 2 * crossed + squared
        # a row of zeros stays zero
        return squares.clamp_min(torch.finfo(a.dtype).tiny).sqrt()


def _squares(weight: Tensor) -> Tensor:
    """(out,): the squared norm of each row, in fp32."""
    return weight.detach().float().square().sum(1)
