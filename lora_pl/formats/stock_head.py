"""A head as the architecture's own classification model in Transformers stores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from lora_pl.encoder.head import ArchitectureHead, LinearHead, head_shape
from lora_pl.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

IDENTITY_EXPONENT = {torch.float32: 16, torch.bfloat16: 16, torch.float16: 10}
r"""k in tanh(2^-k h) = 2^-k h.

That holds where (2^-k h)^2 / 3, the relative distance of tanh from the identity, is below half a unit in the last
place: 2^-25 in fp32 (|h| up to 19; beyond it the last bit may differ), 2^-9 in bf16 (|h| up to 5,000), 2^-12 in fp16
(|h| up to 27). Scaling by 2^-k loses no bit in fp32 and bf16. fp16 has so small a range that k = 16 would lose most
bits; with k = 10 entries below 2^-4 lose their last ones, an error of at most 2^-15 each, while 2^10 W stays finite."""


@dataclass(frozen=True)
class StockNames:
    """Where a stock classification model keeps the two layers of its head."""

    dense: str
    out_proj: str
    modules: tuple[str, ...]
    """The modules that hold the head, as PEFT's `modules_to_save` names them."""


IN_CLASSIFIER = StockNames("classifier.dense", "classifier.out_proj", ("classifier",))
STOCK_NAMES = {
    "bert": StockNames("bert.pooler.dense", "classifier", ("classifier", "pooler")),
    "distilbert": StockNames("pre_classifier", "classifier", ("classifier", "pre_classifier")),
}


def stock_names(config: PretrainedConfig) -> StockNames:
    """The names of the head's layers; a UserError for an architecture whose head is not known."""
    head_shape(config)
    return STOCK_NAMES.get(config.model_type, IN_CLASSIFIER)


def stock_head_state(head: nn.Module, config: PretrainedConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """The head's tensors by the stock model's names, in `dtype`.

    A linear head z = h W^T + b becomes out_proj(tanh(dense(h))) with dense = 2^-k I and out_proj = 2^k W: tanh is the
    identity on numbers that small, and powers of two are exact.

    Raises:
        UserError: the architecture's head is not `out_proj(tanh(dense(h)))`, so that no choice of its weights gives a
            linear head, or 2^k W is out of the dtype's range.
    """
    names = stock_names(config)
    if isinstance(head, LinearHead):
        dense, out_proj = _linear_as_tanh(head, config, dtype)
    else:
        head = cast(ArchitectureHead, head)
        dense, out_proj = ((layer.weight, layer.bias) for layer in (head.dense, head.out_proj))
    state = {}
    for name, (weight, bias) in ((names.dense, dense), (names.out_proj, out_proj)):
        state[f"{name}.weight"] = weight.detach().to(dtype, copy=True).contiguous()
        state[f"{name}.bias"] = bias.detach().to(dtype, copy=True).contiguous()
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise UserError(f"dtype: the head's weights are out of the range of {dtype}; take float32 or bfloat16")
    return state


def require_representable(head: nn.Module, config: PretrainedConfig) -> None:
    """Raise a UserError, with the reason and the ways on, where the stock head can't be the given one."""
    shape = head_shape(config)
    if isinstance(head, LinearHead) and shape.activation is not torch.tanh:
        raise UserError(
            f"head: {config.model_type}'s own head puts a {shape.activation.__name__} between its layers, which no "
            "weights make linear, so a stock folder can't hold this linear head exactly; export --format onnx or "
            "adapter, or train with --model.head architecture"
        )


def head_notes(head: nn.Module) -> tuple[str, ...]:
    """What a user must know of a linear head that `stock_head_state` wrote in fp32 or bf16."""
    if not isinstance(head, LinearHead):
        return ()
    return (
        "Load it in float32 or bfloat16. Its head is linear, written as out(tanh(dense(h))) with dense = 2^-16 I, for "
        "which float16 has no room: there, take `lora_pl export --format hf --dtype float16`.\n",
    )


def linear_head_of(state: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor] | None:
    """`{"weight", "bias"}` of the linear head that `stock_head_state` wrote, None where the head is none of those."""
    names = stock_names(config)
    weight, bias = state[f"{names.dense}.weight"], state[f"{names.dense}.bias"]
    scale = weight[0, 0].item()
    known = {2.0**-exponent for exponent in IDENTITY_EXPONENT.values()}
    if scale not in known or bias.any() or not torch.equal(weight, scale * torch.eye(len(weight), dtype=weight.dtype)):
        return None
    return {"weight": state[f"{names.out_proj}.weight"] * scale, "bias": state[f"{names.out_proj}.bias"]}


def _linear_as_tanh(
    head: LinearHead, config: PretrainedConfig, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    require_representable(head, config)
    size, scale = head.in_features, 2.0 ** IDENTITY_EXPONENT[dtype]
    dense = torch.eye(size) / scale, torch.zeros(size)
    return dense, (head.weight * scale, head.bias)
