"""Guards checkpoints against losses and gradients that are inf or NaN."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lora_pl.errors import UserError
from lora_pl.reporting import say


@dataclass(frozen=True)
class Loss:
    """A batch's, not read yet."""

    step: int
    epoch: int
    batch: int
    value: Tensor

    def told(self) -> str:
        """What it is, and where."""
        return f"the loss is {self.value.item()} at step {self.step} (epoch {self.epoch}, batch {self.batch})"


@dataclass(frozen=True)
class Gradients:
    """The norms of an optimizer's gradients before a step, not read yet."""

    step: int
    parameters: list[nn.Parameter]
    norms: Tensor

    def told(self, model: nn.Module) -> str:
        """Which parameter's is inf or NaN, and where."""
        worst = next(p for p, norm in zip(self.parameters, self.norms.tolist(), strict=True) if not math.isfinite(norm))
        name = next((name for name, parameter in model.named_parameters() if parameter is worst), "the model")
        return f"the gradient of {name} has inf or NaN at step {self.step}"


class FiniteSteps(Callback):
    """Stops a run whose loss or gradients are inf or NaN.

    To read a number is to wait for the device. So losses and gradients' norms are read together: every
    `log_every_n_steps`, before a validation, at an epoch's end, and before a checkpoint is saved. Steps may follow the
    one at fault, but no checkpoint holds it. With `nonfinite_loss` skip, gradients are read before each step, which
    is skipped. In 16-mixed the loss scaler skips such steps itself, to find its scale.

    Raises:
        UserError: `model.nonfinite_loss`, a loss is inf or NaN; `trainer.gradients`, a gradient is.
    """

    def __init__(self) -> None:
        self._step = 0
        self._losses: list[Loss] = []
        self._gradients: list[Gradients] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget a run before that was interrupted."""
        self._losses, self._gradients = [], []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the step that the batch is part of."""
        self._step = trainer.global_step

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note the norms of all gradients."""
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if getattr(trainer.precision_plugin, "scaler", None) is not None or not trained:
            return
        norms = torch.stack(torch._foreach_norm([p.grad for p in trained]))
        found = Gradients(self._step, trained, norms)
        if pl_module.hparams["nonfinite_loss"] != "skip":
            self._gradients.append(found)
        elif not _are_finite([norms]):
            say(f"{found.told(pl_module)}; the step is skipped")
            optimizer.zero_grad(set_to_none=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss; after the last step before a log, look."""
        loss = (outputs or {}).get("loss")  # a skipped batch has none
        if loss is not None:
            self._losses.append(Loss(self._step, trainer.current_epoch, batch_idx, loss))
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step > self._step and interval > 0 and trainer.global_step % interval == 0:
            self._look(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, so that the step is named instead of the sentences."""
        self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look."""
        self._look(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look, so that no checkpoint has weights that are inf or NaN."""
        self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        losses, gradients = self._losses, self._gradients
        self._losses, self._gradients = [], []
        if _are_finite([*(loss.value for loss in losses), *(each.norms for each in gradients)]):
            return
        loss = next((each for each in losses if not _are_finite([each.value])), None)
        bad = next((each for each in gradients if not _are_finite([each.norms])), None)
        if bad is not None and (loss is None or bad.step < loss.step):
            advice = "take a lower learning rate or --trainer.gradient_clip_val 1, with --resume --force"
            error = UserError("trainer.gradients", f"{bad.told(pl_module)}; {advice}")
        elif loss is not None:
            paths = [getattr(callback, "last_model_path", "") for callback in trainer.checkpoint_callbacks]
            good = next((path for path in reversed(paths) if path), "none yet")
            advice = f"last good checkpoint: {good}; lower the learning rate, or take skip"
            error = UserError("model.nonfinite_loss", f"{loss.told()}; {advice}")
        raise pl_module.ended_by(error)  # type: ignore[operator]


def _are_finite(values: list[Tensor]) -> bool:
    """Waits for the device, once."""
    return not values or math.isfinite(sum(torch.cat([each.flatten() for each in values]).tolist()))
