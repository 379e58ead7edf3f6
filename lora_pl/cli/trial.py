"""One trial of an ablation, as `fit` runs it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor

from lora_pl.ablation.grid import Trial
from lora_pl.ablation.record import TrialRecord, TrialResult
from lora_pl.callbacks.finite_gradients import FiniteGradients
from lora_pl.callbacks.hparams_record import HparamsRecord
from lora_pl.callbacks.throughput import Throughput
from lora_pl.cli.trainer import ClassifierCLI
from lora_pl.reporting import silence
from lora_pl.storage.checkpoint import newest_checkpoint


def train_trial(config: Path, folder: Path, data_seed: int | None, trial: Trial) -> TrialResult:
    """Run `fit --config CONFIG` with the trial's own flags, silently, or go on with it where it was stopped.

    Args:
        config: The study's configuration.
        folder: Where trials have their folders.
        data_seed: What the data are drawn by; by default the trial's seed, as `fit` does it.
        trial: What to train.
    """
    checkpoint, _ = newest_checkpoint(folder / trial.name)
    if checkpoint is None:
        shutil.rmtree(folder / trial.name, ignore_errors=True)
    with silence():
        return TrialCLI(config, folder, data_seed, trial, checkpoint).record.result


class TrialCLI(ClassifierCLI):
    """`fit` with the callbacks that a trial needs, in the trial's folder."""

    def __init__(
        self, config: Path, folder: Path, data_seed: int | None, trial: Trial, checkpoint: Path | None
    ) -> None:
        self.checkpoints = self.logs = folder
        self.trial, self.data_seed = trial, data_seed
        self.record = TrialRecord()
        resume = ["--ckpt_path", str(checkpoint)] if checkpoint else []
        super().__init__(["fit", "--config", str(config), *trial.arguments(), *resume])

    def before_instantiate_classes(self) -> None:
        """Draw the data by the study's seed where it has one."""
        super().before_instantiate_classes()
        if self.data_seed is not None:
            self._option("data").seed = self.data_seed

    def _run_name(self) -> str:
        return self.trial.name

    def _callbacks(self, name: str, logs: bool) -> list[Callback]:
        callbacks: list[Callback] = [self.record, FiniteGradients(), Throughput()]
        return [*callbacks, HparamsRecord(), LearningRateMonitor("step")] if logs else callbacks

    def _saving(self, name: str) -> list[Callback]:
        """Nothing where no adapter is trained: full fine-tuning would write a whole encoder each time."""
        return super()._saving(name) if self.trial.method == "lora" else []

    def _shows_bar(self) -> bool:
        return False

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Without Lightning's own checkpoints where the trial has none."""
        if self.trial.method != "lora":
            kwargs["enable_checkpointing"] = False
        return super().instantiate_trainer(**kwargs)
