"""Frozen weights in 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_pl.lora.product import computed_in

ZERO = 128
"""The code of 0 in a row of uint8: with AVX512_VNNI oneDNN is fast at uint8 times int8, int8 times int8 needs AMX."""
LARGEST = 126
"""Of a row's codes, by absolute value; one less than int8 has, since a quotient in bf16 may be rounded up."""


class Int8Weight(Tensor):
    r"""A frozen weight W (out, in) as codes q in int8 with a scale per output.

    .. math:: W_{oi} \approx s_o q_{oi}, \quad s_o = \max_i |W_{oi}| / 127

    `F.linear(x, W, bias)` and `dy @ W` are products in 8 bits, accumulated in int32: each row of x is quantized by its
    own largest entry, and in the second s_o is multiplied into dy first, so that both take the same codes (cf.
    SwitchBack; Wortsman et al., 2023). Results have the dtype of x, or autocast's. For every other operation W is a
    matrix in `dtype`.

    Args:
        weight: (out, in), floating point, on the CPU.
        dtype: bf16 or fp32.
    """

    _forward: _Product
    _backward: _Product | None
    _scale: Tensor

    @staticmethod
    def __new__(cls, weight: Tensor, dtype: torch.dtype) -> Int8Weight:
        """Quantize a weight."""
        exact = weight.detach().float()
        scale = (exact.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        return cls._of(_Product((exact / scale[:, None]).round_().to(torch.int8), scale), scale, dtype)

    @classmethod
    @torch.inference_mode(False)  # torch can't detach a subclass into an inference tensor
    def _of(cls, forward: _Product, scale: Tensor, dtype: torch.dtype) -> Int8Weight:
        outputs, inputs = len(scale), forward.packed.shape[0]
        self = Tensor._make_wrapper_subclass(cls, (outputs, inputs), dtype=dtype)
        self._forward, self._backward, self._scale = forward, None, scale
        return self

    def product(self, x: Tensor) -> Tensor:
        """x W^T, (rows, in) -> (rows, out), in the dtype of x; not differentiable."""
        return self._forward(x)

    def product_of_gradient(self, dy: Tensor) -> Tensor:
        """dy W, (rows, out) -> (rows, in), in the dtype of dy; not differentiable."""
        if self._backward is None:
            codes = self._forward.packed.to_dense()  # (in, out)
            self._backward = _Product(codes, self._scale.new_ones(len(codes)))
        return self._backward(dy * self._scale.to(dy.dtype))

    def dequantized(self) -> Tensor:
        """s_o q_oi, (out, in), in `dtype`."""
        codes: Tensor = self._forward.packed.to_dense()  # (in, out)
        return (codes.t() * self._scale[:, None]).to(self.dtype).contiguous()

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS and len(args) > 1 and isinstance(args[1], Int8Weight):
            return _PRODUCTS[func](*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[Any, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.has_kernel_for_dispatch_key(_COMPOSITE):  # in inference mode these come here whole
            return func.decompose(*args, **kwargs)
        if func in _COPIES and "device" not in kwargs and kwargs.get("dtype", torch.float32) in _COMPUTED_IN:
            return cls._of(args[0]._forward, args[0]._scale, kwargs.get("dtype") or args[0].dtype)
        plain = torch.utils._pytree.tree_map_only(Int8Weight, Int8Weight.dequantized, (args, kwargs))
        return func(*plain[0], **plain[1])


def int8_is_fast() -> bool:
    """Whether the CPU has AVX512_VNNI (AMX implies it); oneDNN's products take thousands of times as long without."""
    return bool(torch.cpu.get_capabilities().get("avx512_vnni")) and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


class _Product:
    """x -> x (s q)^T in 8 bits, with q (out, in) in oneDNN's own layout, and s (out,)."""

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.packed = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)
        self.scale = scale
        self.of_zero = -ZERO * scale * codes.sum(1, dtype=torch.float32)  # (out,): takes ZERO out of the rows' codes
        self.none = scale.new_zeros(len(scale), dtype=torch.int32)  # int8 weights have no offset

    def __call__(self, x: Tensor) -> Tensor:
        codes, scale = _quantized(x)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, 0, self.packed, self.scale, self.none, self.of_zero, 1.0, 0, x.dtype, "none", [], ""
        )
        return y.mul_(scale)

    def __deepcopy__(self, memo: object) -> _Product:
        return self  # never changed

    def __reduce__(self) -> tuple[Any, ...]:
        return _Product, (self.packed.to_dense().t(), self.scale)


def _quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (rows, in) as uint8 codes and a scale per row (rows, 1): x = scale * (codes - ZERO) up to rounding.

    A row with NaN has it as its scale.
    """
    room = x.abs()
    # without a sign, bits are ordered as numbers are; integers' maxima take half the time
    largest = room.view(_INTEGERS[x.element_size()]).amax(1, keepdim=True).view(x.dtype)
    scale = (largest / LARGEST).clamp_min_(torch.finfo(x.dtype).tiny)
    codes = torch.div(x, scale, out=room).round_().to(torch.int8).view(torch.uint8)
    return codes.bitwise_xor_(ZERO), scale


class _Linear(torch.autograd.Function):
    """x W^T, differentiable in x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Int8Weight) -> Tensor:
        ctx.weight = weight
        return weight.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return ctx.weight.product_of_gradient(dy), None


def _linear(x: Tensor, weight: Int8Weight, bias: Tensor | None = None) -> Tensor:
    rows = x.to(computed_in(x, x.dtype)).reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and rows.requires_grad:
        y = cast(Tensor, _Linear.apply(rows, weight))  # type: ignore[no-untyped-call]
    else:
        y = weight.product(rows)
    if bias is not None:
        y = y + bias.to(y.dtype) if bias.requires_grad else y.add_(bias.to(y.dtype))
    return y.view(*x.shape[:-1], len(weight))


def _matmul(dy: Tensor, weight: Int8Weight) -> Tensor:
    return weight.product_of_gradient(dy) if dy.dim() == 2 else dy @ weight.dequantized()


_PRODUCTS: Mapping[Any, Callable[..., Tensor]] = {F.linear: _linear, Tensor.matmul: _matmul, torch.matmul: _matmul}
_COMPUTED_IN = (torch.float32, torch.bfloat16)
_INTEGERS = {2: torch.int16, 4: torch.int32}
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_COPIES = {getattr(torch.ops.aten, name).default for name in ("detach", "clone", "alias", "_to_copy")}
