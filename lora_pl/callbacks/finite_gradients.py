"""Guards the weights against gradients that are inf or NaN."""

from __future__ import annotations

import math

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lora_pl.errors import UserError
from lora_pl.reporting import say


class FiniteGradients(Callback):
    """Stops the run before a step with inf or NaN in its gradients, or skips the step where `nonfinite_loss` is skip.

    In 16-mixed the loss scaler skips such steps itself, to find its scale.

    Raises:
        UserError: `trainer.gradients`, a gradient is inf or NaN.
    """

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check all gradients at once."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients or math.isfinite(torch.stack(torch._foreach_norm(gradients)).sum().item()):
            return
        trained = ((name, p.grad) for name, p in pl_module.named_parameters() if p.grad is not None)
        bad = next((name for name, grad in trained if not torch.isfinite(grad).all()), "the model")
        where = f"the gradient of {bad} has inf or NaN at step {trainer.global_step}"
        if pl_module.hparams.get("nonfinite_loss") != "skip":
            raise UserError(
                "trainer.gradients",
                f"{where}; take a lower learning rate or --trainer.gradient_clip_val 1, with --resume --force",
            )
        say(f"{where}; the step is skipped")
        optimizer.zero_grad(set_to_none=True)
