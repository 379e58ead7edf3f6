"""What the LightningModules on a base share: optimizer, schedule, the base's dtype, metrics per stage."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lora_pl.data.batches import Batch
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.data.task import Task
from lora_pl.encoder.dtype import resolve_dtype
from lora_pl.encoder.source import canonical_name
from lora_pl.errors import UserError
from lora_pl.model.base import Base
from lora_pl.model.finite_steps import FiniteSteps
from lora_pl.model.metrics import StageMetrics
from lora_pl.model.monitor import reported, require_monitor
from lora_pl.model.precision import require_precision
from lora_pl.model.random_stream import take_own_stream
from lora_pl.model.schedule import make_schedule
from lora_pl.reporting import say


class TaskModule(LightningModule):
    """Trains heads on a base for a task; subclasses define the forward pass, the steps and the logging.

    `hparams` are the arguments of `LoRAClassifier`.
    """

    base: Base
    task: Task

    @property
    def monitor(self) -> str:
        """The logged metric that chooses the best checkpoint."""
        return f"val/{self.hparams['monitor'] or self.task.metrics[0]}"

    @abstractmethod
    def stage_metrics(self) -> Sequence[StageMetrics]:
        """The metrics of every head."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups: trained parameters, learning rate and weight decay."""

    def configure_callbacks(self) -> list[Callback]:
        """Guard any trainer's runs by `FiniteSteps`."""
        has_one = any(isinstance(callback, FiniteSteps) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [] if has_one else [FiniteSteps()]

    def setup(self, stage: str) -> None:
        """Convert the frozen base to the dtype that the trainer computes in.

        Raises:
            UserError: `model.nonfinite_loss`: skip, with several processes; `data.encoder`, `data.label_names`,
                `data.pairs`, `data.max_length`: the data are another encoder's tokens, have other classes or another
                form of text; `model.monitor`: of a split that they lack;
                `trainer.precision`, see `require_precision`.
        """
        require_precision(str(self.trainer.precision))
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, SentenceDataModule):
            self._take_splits(data, stage)
        if self.hparams["nonfinite_loss"] == "skip" and self.trainer.world_size > 1:
            raise UserError("model.nonfinite_loss", "skip works in a single process only; take stop, or one device")
        self.base.cast(resolve_dtype(self.hparams["base_dtype"], str(self.trainer.precision)))

    def _take_splits(self, data: SentenceDataModule, stage: str) -> None:
        _require_own_data(data, self.hparams)
        if stage == "fit":
            require_monitor(self.hparams["monitor"], reported(self.task, len(data.validation_splits)))
        for metrics in self.stage_metrics():
            metrics.labelled = data.labelled_splits(stage)

    def configure_optimizers(self) -> Any:
        """AdamW on the trained parameters, and the schedule per optimizer step.

        Raises:
            UserError: `model.schedule`, `model.warmup_ratio`: linear, or a warm-up, in a run without an end.
        """
        # the scaler of 16-mixed leaves gradients to a fused step as they are, which is too late to clip them
        clips_scaled = bool(self.trainer.gradient_clip_val) and str(self.trainer.precision) == "16-mixed"
        optimizer = torch.optim.AdamW(self.parameter_groups(), fused=not clips_scaled)
        steps = self.trainer.estimated_stepping_batches
        for name, endless in (("schedule", "constant"), ("warmup_ratio", 0)):
            if math.isinf(steps) and self.hparams[name] != endless:
                said = f"{self.hparams[name]} needs an end; give --trainer.max_epochs or --trainer.max_steps"
                raise UserError(f"model.{name}", said)
        total = 0 if math.isinf(steps) else int(steps)
        warmup = round(self.hparams["warmup_ratio"] * total)
        schedule = make_schedule(optimizer, self.hparams["schedule"], warmup, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning's, which refuses to clip before a fused step in any mixed precision."""
        if not gradient_clip_val:
            return
        clip = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
        for parameters in self.clipped_together(optimizer):
            clip(parameters, gradient_clip_val)

    def clipped_together(self, optimizer: torch.optim.Optimizer) -> list[list[nn.Parameter]]:
        """Parameters of one norm each."""
        return [[parameter for group in optimizer.param_groups for parameter in group["params"]]]

    def on_train_start(self) -> None:
        """Let each process draw dropout masks of its own; until here all draw the same.

        A resumed run goes on with its own learning rates and weight decay, where they differ from the checkpoint's.
        """
        take_own_stream(self.global_rank)
        if self.trainer.ckpt_path:
            self._take_rates()

    def _take_rates(self) -> None:
        schedule, own = self.lr_schedulers(), self.parameter_groups()
        names = [group["name"] for group in own]
        if not isinstance(schedule, LambdaLR) or [g.get("name") for g in schedule.optimizer.param_groups] != names:
            return  # a subclass has an optimizer of its own
        optimizer = schedule.optimizer
        schedule.base_lrs = [group["lr"] for group in own]
        factor, fused = schedule.lr_lambdas[0](schedule.last_epoch), optimizer.defaults["fused"]
        for group, new in zip(optimizer.param_groups, own, strict=True):
            rates = {"lr": new["lr"] * factor, "initial_lr": new["lr"], "weight_decay": new["weight_decay"]}
            group.update(rates, fused=fused)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The logits of a batch.

        Raises:
            UserError: `predict`: it is none of a `SentenceDataModule`'s, such as texts.
        """
        if not isinstance(batch, Batch):
            raise UserError("predict", f"expected a Batch, got a {type(batch).__name__}; for texts call model.predict")
        logits: Tensor = self(batch)
        return logits

    def on_train_epoch_start(self) -> None:
        """Start the epoch's metrics."""
        self._reset("train")

    def on_validation_epoch_start(self) -> None:
        """As `on_train_epoch_start`."""
        self._reset("val")

    def on_test_epoch_start(self) -> None:
        """As `on_train_epoch_start`."""
        self._reset("test")

    def check_finite(self, stage: str) -> None:
        """Report logits that are inf or NaN at the end of an epoch of validation or test, and the first sentences.

        Raises:
            UserError: `model.nonfinite_loss`, unless such batches are skipped in a run; its metrics are NaN then.
        """
        broken = sum(metrics.broken(stage) for metrics in self.stage_metrics())
        if not broken:
            return
        places = next(filter(None, (metrics.broken_places(stage) for metrics in self.stage_metrics())), "")
        said = f"{stage}: {broken:,} sentences have logits that are inf or NaN{places and f' ({places})'}"
        if self.hparams["nonfinite_loss"] == "stop" or self.trainer.state.fn != "fit":
            raise UserError("model.nonfinite_loss", f"{said}; compute in a wider type, or take another checkpoint")
        say(f"{said}; the metrics are NaN, and no best checkpoint")

    def _reset(self, stage: str) -> None:
        # at the start: tensors that a reset in inference mode has made can't be updated outside of it
        for metrics in self.stage_metrics():
            metrics.reset(stage)


def _require_own_data(data: SentenceDataModule, settings: Mapping[str, Any]) -> None:
    if canonical_name(data.encoder) != settings["encoder"]:
        raise UserError(
            "data.encoder",
            f"the data are tokenized for {data.encoder}, but the model is {settings['encoder']}; give both the same "
            "encoder, as LoRAClassifier.for_data does",
        )
    own = {"label_names": list(data.label_names), "pairs": data.pairs, "max_length": data.max_length}
    for name, value in own.items():
        if value != settings[name]:
            raise UserError(
                f"data.{name}", f"{value}, but the model has {settings[name]}; LoRAClassifier.for_data takes the data's"
            )
