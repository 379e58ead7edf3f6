"""A run's TensorBoard log, which shows the points of a run that was never stopped."""

from __future__ import annotations

import time
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

from lora_pl.storage.checkpoint import read_checkpoint
from lora_pl.training.resume.exact_resume import RESUME_KEY


def run_logger(logs: Path, name: str, checkpoint: Path | None) -> TensorBoardLogger:
    """The log of `logs/NAME`, in which TensorBoard hides points from after `checkpoint` that will be logged again.

    Without a checkpoint these are all earlier points. Files stay: the new one says from which step on it replaces them.
    """
    first = read_checkpoint(checkpoint).get(RESUME_KEY, {}).get("log_steps") if checkpoint else 0
    _wait_for_a_later_name(logs / name)
    return TensorBoardLogger(logs, name=name, version="", default_hp_metric=False, purge_step=first)


def _wait_for_a_later_name(folder: Path) -> None:
    """TensorBoard reads event files by name, which begins with the second of their making."""
    seconds = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
    newest = max((int(second) for second in seconds if second.isdigit()), default=0)
    time.sleep(min(1.0, max(0.0, newest + 1 - time.time())))
