"""Guards checkpoints against losses and gradients that are inf or NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lora_pl.errors import UserError
from lora_pl.model.logged import is_logged
from lora_pl.reporting import say


@dataclass(frozen=True)
class Loss:
    """A batch's, not read yet."""

    step: int
    epoch: int
    batch: int
    values: Tensor

    def told(self) -> str:
        """What it is, and where."""
        return f"the loss is {self.values.item()} at step {self.step} (epoch {self.epoch}, batch {self.batch})"

    def error(self, trainer: Trainer) -> UserError:
        """That ends the run."""
        last, best = (
            [path for callback in trainer.checkpoint_callbacks if (path := getattr(callback, name, ""))]
            for name in ("last_model_path", "best_model_path")
        )
        good = next(filter(None, [*reversed(last), trainer.ckpt_path, *best]), "none yet")
        advice = f"last good checkpoint: {good}; lower the learning rate, or take skip"
        return UserError("model.nonfinite_loss", f"{self.told()}; {advice}")


@dataclass(frozen=True)
class Gradients:
    """The norms of an optimizer's gradients before a step, not read yet."""

    step: int
    parameters: list[nn.Parameter]
    values: Tensor

    def told(self, model: nn.Module) -> str:
        """Which parameter's is inf or NaN, and where."""
        norms = zip(self.parameters, self.values.tolist(), strict=True)
        worst = next(parameter for parameter, norm in norms if not math.isfinite(norm))
        name = next((name for name, parameter in model.named_parameters() if parameter is worst), "the model")
        return f"the gradient of {name} has inf or NaN at step {self.step}"

    def error(self, trainer: Trainer) -> UserError:
        """That ends the run."""
        advice = "take a lower learning rate or --trainer.gradient_clip_val 1, with --resume --force"
        return UserError("trainer.gradients", f"{self.told(trainer.lightning_module)}; {advice}")


class FiniteSteps(Callback):
    """Stops a run whose loss or gradients are inf or NaN.

    To read a number is to wait for the device. So losses and gradients' norms are read together: every
    `log_every_n_steps`, before a validation, at an epoch's end, and before a checkpoint is saved (but one of weights
    alone, of which Lightning tells no callback). Steps may follow the one at fault, but no checkpoint holds it. With
    `nonfinite_loss` skip, gradients are read before each step, which is skipped. In 16-mixed the loss scaler skips such
    steps itself, to find its scale.

    Raises:
        UserError: `model.nonfinite_loss`, a loss is inf or NaN; `trainer.gradients`, a gradient is.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget a run before that was interrupted."""
        self._step = 0
        self._noted: list[Loss | Gradients] = []

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
        found = Gradients(self._step, trained, torch.stack(torch._foreach_norm([p.grad for p in trained])))
        if not _skips(pl_module):
            self._noted.append(found)
        elif not _are_finite([found]):
            say(f"{found.told(pl_module)}; the step is skipped")
            optimizer.zero_grad(set_to_none=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss; after the last step before a log, look."""
        loss = (outputs or {}).get("loss")  # a skipped batch has none
        if loss is not None and not _skips(pl_module):
            self._noted.append(Loss(self._step, trainer.current_epoch, batch_idx, loss))
        logs = trainer.log_every_n_steps > 0  # type: ignore[attr-defined]
        if is_logged(trainer) if logs else batch_idx % 1000 == 999:
            self._look(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, so that the step is named instead of the sentences."""
        self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look."""
        self._look(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look, so that no checkpoint has weights that are inf or NaN."""
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        noted, self._noted = self._noted, []
        if _are_finite(noted):
            return
        bad = [each for each in noted if not _are_finite([each])]
        first = min(bad, key=lambda each: (each.step, isinstance(each, Gradients)))  # of one step, its loss
        raise first.error(trainer)


def _skips(pl_module: LightningModule) -> bool:
    return bool(pl_module.hparams["nonfinite_loss"] == "skip")


def _are_finite(noted: Sequence[Loss | Gradients]) -> bool:
    """Waits for the device, once."""
    return not noted or math.isfinite(sum(torch.cat([each.values.flatten() for each in noted]).tolist()))
