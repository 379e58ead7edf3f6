"""The HPARAMS tab of TensorBoard."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from lora_pl.callbacks.tensorboard import tensorboard_loggers
from lora_pl.data.own_files import OwnFiles
from lora_pl.storage.flat import flatten

OF_TRAINER = ("max_epochs", "max_steps", "limit_train_batches", "accumulate_grad_batches", "precision")
"""The trainer's options that tell runs apart."""


class HparamsRecord(Callback):
    """Writes the run's hyper-parameters with the task's metric; TensorBoard shows its latest value."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write them."""
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        unread = {*pl_module.hparams, *(["source"] if isinstance(getattr(data, "own", None), OwnFiles) else [])}
        settings = {
            "model": dict(pl_module.hparams),
            "data": {name: value for name, value in (data.hparams if data else {}).items() if name not in unread},
            "trainer": {name: getattr(trainer, name) for name in OF_TRAINER},
        }
        for logger in tensorboard_loggers(trainer):
            write_hparams(logger, settings, str(pl_module.monitor))


def write_hparams(logger: TensorBoardLogger, settings: dict[str, Any], monitor: str) -> None:
    """Write a run's settings, with `monitor` and the validation loss as their metrics."""
    given = {
        key: value if isinstance(value, bool | int | float | str) else ", ".join(map(str, value))
        for key, value in flatten(settings).items()
        if value not in (None, {})
    }
    writer = logger.experiment._get_file_writer()
    for summary in hparams(given, {monitor: 0.0, "val/loss": 0.0}):  # type: ignore[no-untyped-call]
        writer.add_summary(summary)
