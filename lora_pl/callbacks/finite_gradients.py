"""No step is taken along a gradient that is inf or NaN."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lora_pl.errors import UserError
from lora_pl.reporting import say


class FiniteGradients(Callback):
    """Stops the run before such a step, or skips it where the model skips non-finite losses.

    In 16-mixed the loss scaler does this itself: there an overflow is part of finding the scale.
    """

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look at all gradients at once."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients or bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients)).sum())):
            return
        bad = [name for name, p in pl_module.named_parameters() if p.grad is not None and not _finite(p.grad)]
        where = f"the gradient of {bad[0] if bad else 'the model'} is not finite at step {trainer.global_step}"
        if pl_module.hparams.get("nonfinite_loss") != "skip":
            raise UserError(
                "trainer.gradients",
                f"{where}; take a lower learning rate or --trainer.gradient_clip_val 1, and resume with --resume",
            )
        say(f"{where}; the step is skipped")
        optimizer.zero_grad(set_to_none=True)


def _finite(gradient: Any) -> bool:
    return bool(torch.isfinite(gradient).all())
