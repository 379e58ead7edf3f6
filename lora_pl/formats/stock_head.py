"""A head as the architecture's own classification model in Transformers stores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lora_pl.encoder.architectures import architecture_of, stock_head
from lora_pl.encoder.head import LinearHead
from lora_pl.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

IDENTITY_EXPONENT = {torch.float32: 16, torch.bfloat16: 16, torch.float16: 10}
r"""k in tanh(2^-k h) = 2^-k h.

That holds where (2^-k h)^2 / 3, the relative distance of tanh from the identity, is below half a unit in the last
place: 2^-25 in fp32 (|h| up to 19; beyond it the last bit may differ), 2^-9 in bf16 (|h| up to 5,000), 2^-12 in fp16
(|h| up to 27). Scaling by 2^-k loses no bit in fp32 and bf16. fp16 has so small a range that k = 16 would lose most
bits; with k = 10 entries below 2^-4 lose their last ones, an error of at most 2^-15 each, while 2^10 W stays finite."""


def stock_head_state(head: nn.Module, config: PretrainedConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """The head's tensors by the stock model's names, in `dtype`.

    A linear head z = h W^T + b, where `require_representable` allows one, becomes out_proj(tanh(dense(h))) with
    dense = 2^-k I and out_proj = 2^k W: tanh is the identity on numbers that small, and powers of two are exact.

    Raises:
        UserError: export.dtype, 2^k W is out of the dtype's range.
    """
    tensors = _linear_as_tanh(head, dtype) if isinstance(head, LinearHead) else head.state_dict()
    state = {
        f"{stock}.{name.removeprefix(f'{own}.')}": tensor.detach().to(dtype, copy=True).contiguous()
        for own, stock in stock_head(config).layers.items()
        for name, tensor in tensors.items()
        if name.startswith(f"{own}.")
    }
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise UserError("export.dtype", f"the head's weights are out of the range of {dtype}; use float32 or bfloat16")
    return state


def require_representable(head: nn.Module, config: PretrainedConfig) -> None:
    """Raise a UserError: model.head: there is no stock head, or the head is linear and no weights make it linear."""
    stock = architecture_of(config).head
    if stock is None:
        raise UserError(
            "model.head",
            f"how {config.model_type} classifies in Transformers is not known here, so no stock folder can be written; "
            "export --format onnx or adapter",
        )
    if isinstance(head, LinearHead) and not stock.can_be_linear:
        between = f"a {stock.activation_name(config)}" + (" and a norm" if stock.norm else "")
        raise UserError(
            "model.head",
            f"{config.model_type}'s own head puts {between} between its layers, which no weights make linear, so a "
            "stock folder can't hold this linear head exactly; export --format onnx or adapter, or train with "
            "--model.head architecture",
        )


def require_first_token(config: PretrainedConfig) -> None:
    """Raise a UserError: model.head: the base's configuration makes its own head read more than the first token."""
    for setting, needed in stock_head(config).settings.items():
        given = getattr(config, setting)
        if given != needed:
            raise UserError(
                "model.head",
                f"the base's configuration says {setting}: {given}, and lora_pl's heads read the first token alone; "
                f"expected a base whose config.json says {setting}: {needed}",
            )


def head_notes(head: nn.Module) -> tuple[str, ...]:
    """For the card: what holds of a linear head that `stock_head_state` wrote in fp32 or bf16."""
    if not isinstance(head, LinearHead):
        return ()
    return (
        "Load it in float32 or bfloat16. Its head is linear, written as out(tanh(dense(h))) with dense = 2^-16 I, for "
        "which float16 has no room; for float16 use `lora_pl export --format hf --dtype float16`.\n",
    )


def linear_head_of(state: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor] | None:
    """`{"weight", "bias"}` of a linear head that `stock_head_state` wrote, None for any other head."""
    stock = stock_head(config)
    if not stock.can_be_linear:
        return None
    weight, bias = state[f"{stock.dense}.weight"], state[f"{stock.dense}.bias"]
    scale = weight[0, 0].item()
    known = {2.0**-exponent for exponent in IDENTITY_EXPONENT.values()}
    if scale not in known or bias.any() or not torch.equal(weight, scale * torch.eye(len(weight), dtype=weight.dtype)):
        return None
    return {"weight": state[f"{stock.out_proj}.weight"] * scale, "bias": state[f"{stock.out_proj}.bias"]}


def _linear_as_tanh(head: LinearHead, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state of the `ArchitectureHead` that is the linear head."""
    size, scale = head.in_features, 2.0 ** IDENTITY_EXPONENT[dtype]
    dense = {"dense.weight": torch.eye(size) / scale, "dense.bias": torch.zeros(size)}
    return dense | {"out_proj.weight": head.weight * scale, "out_proj.bias": head.bias}
