"""The types that a run computes in, checked and reported."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lora_pl.encoder.biases_and_norms import is_norm
from lora_pl.errors import UserError
from lora_pl.lora import lora_layers
from lora_pl.lora.int8 import Int8Weight
from lora_pl.model.precision import cpu_has_bf16
from lora_pl.reporting import say


class PrecisionReport(Callback):
    """Reports at the start of fit what is computed in which type, and stops a run that would train wrongly.

    Adapters, head and the optimizer's state must be fp32; the loss is scaled in 16-mixed on a GPU and nowhere else.

    Raises:
        UserError: `trainer.precision`, a trainable parameter or a moment of the optimizer is not fp32, or the loss
            scaling does not fit the type.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check parameters and loss scaling, then report the types."""
        self._checked = False
        check_trainable_types(pl_module)
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        check_loss_scaling(str(trainer.precision), str(pl_module.device.type), scaled)
        with trainer.precision_plugin.forward_context():
            computed = computed_type(pl_module)
        say(
            f"precision {trainer.precision} on {pl_module.device.type}: matrix products in {_short(computed)}\n"
            f"  adapters, head, norms and optimizer fp32, frozen weights {_frozen_types(pl_module)}, "
            f"loss {'scaled' if scaled else 'not scaled'}"
        )
        if pl_module.device.type == "cpu" and computed == torch.bfloat16 and not cpu_has_bf16():
            say("  this CPU has no bf16 arithmetic, so that a step takes many times as long as with 32-true")

    def on_before_zero_grad(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check the optimizer's state once it exists."""
        if not self._checked and optimizer.state:
            check_optimizer_state(optimizer)
            self._checked = True


def check_trainable_types(model: nn.Module) -> None:
    """Raise a UserError for the first trainable parameter that is not fp32."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise UserError(
                "trainer.precision",
                f"{name} would be trained in {_short(parameter.dtype)}, in which small updates are lost; take "
                "bf16-mixed, 16-mixed or 32-true",
            )


def check_loss_scaling(precision: str, device: str, scaled: bool) -> None:
    """Raise a UserError unless the loss is scaled exactly where gradients are fp16: in 16-mixed on a GPU."""
    if precision == "16-mixed" and device == "cpu":
        raise UserError("trainer.precision", "16-mixed needs a GPU; on a CPU take bf16-mixed or 32-true")
    if scaled != (precision == "16-mixed"):
        raise UserError(
            "trainer.precision",
            f"{precision} {'with' if scaled else 'without'} loss scaling trains wrongly; remove own plugins",
        )


def check_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise a UserError if a moment is not fp32."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dtype != torch.float32:
                raise UserError(
                    "trainer.precision", f"the optimizer keeps {name} in {_short(value.dtype)}, not in fp32"
                )


@torch.no_grad()
def computed_type(model: nn.Module) -> torch.dtype:
    """The type of a product with the first adapted layer's W0 (else the first linear layer's) in the current context.

    Draws no random numbers: the layer itself would apply its dropout.
    """
    linear = (module for module in model.modules() if isinstance(module, nn.Linear))
    weight = next(iter([*lora_layers(model).values(), *linear])).weight
    return nn.functional.linear(weight.new_zeros(1, weight.shape[1]), weight).dtype


def _frozen_types(model: nn.Module) -> str:
    weights = (p for m in model.modules() if not is_norm(m) for p in m.parameters(recurse=False))
    types = {"int8" if isinstance(p, Int8Weight) else _short(p.dtype) for p in weights if not p.requires_grad}
    return " and ".join(sorted(types)) or "no type (none are frozen)"


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, str(dtype))
