"""The last thing that a person reads after fit."""

from __future__ import annotations

import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from rich.rule import Rule

from lora_pl.callbacks.merged_export import MergedExport
from lora_pl.model.prediction import example_command
from lora_pl.reporting import say


class RunSummary(Callback):
    """Prints the best result, where it lies, and what to do with it."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary."""
        checkpoints = trainer.checkpoint_callbacks
        best = next((c for c in checkpoints if isinstance(c, ModelCheckpoint) and c.best_model_path), None)
        last = next((path for c in checkpoints if (path := getattr(c, "last_model_path", ""))), "")
        if best is None and not last:
            return
        say(Rule("Done", align="left"))
        # no frame around them: commands are to be copied
        for line in _lines(trainer, pl_module, best, last, time.monotonic() - self._started):
            say(line)


def _lines(
    trainer: Trainer, pl_module: LightningModule, best: ModelCheckpoint | None, last: str, seconds: float
) -> list[str]:
    name = str(pl_module.monitor).removeprefix("val/")
    if best is None:
        path, lines = _short(last), [f"{trainer.global_step:,} steps without validation, in {seconds:.0f} s"]
    else:
        path = _short(best.best_model_path)
        lines = [f"best {name} {float(best.best_model_score or 0):.4f} on validation, in {seconds:.0f} s"]
    lines.append(f"checkpoint  {path}")
    exports = [c.exported for c in trainer.callbacks if isinstance(c, MergedExport)]  # type: ignore[attr-defined]
    lines += [f"merged      {_short(str(folder))}" for folder in exports if folder]
    if isinstance(trainer.logger, TensorBoardLogger):
        lines.append(f"look        tensorboard --logdir {_short(trainer.logger.save_dir)}")
    return [*lines, f"predict     {example_command(pl_module.task, path)}"]  # type: ignore[arg-type]


def _short(path: str) -> str:
    """Relative to the current folder where it lies below it."""
    whole = Path(path).resolve()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)
