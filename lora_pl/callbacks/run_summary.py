"""The last thing that a person reads after fit."""

from __future__ import annotations

import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.rule import Rule

from lora_pl.callbacks.merged_export import MergedExport
from lora_pl.callbacks.run_checkpoints import BestCheckpoint
from lora_pl.reporting import say


class RunSummary(Callback):
    """Prints the best result, where it lies, and what to do with it."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary."""
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, BestCheckpoint) and checkpoint.best_model_score is not None:
                say(Rule("Done", align="left"))
                # no frame around them: commands are to be copied
                for line in _lines(trainer, pl_module, checkpoint, time.monotonic() - self._started):
                    say(line)


def _lines(trainer: Trainer, pl_module: LightningModule, checkpoint: BestCheckpoint, seconds: float) -> list[str]:
    path = _short(checkpoint.best_model_path)
    name = str(pl_module.monitor).removeprefix("val/")
    lines = [
        f"best {name} {float(checkpoint.best_model_score or 0):.4f} on validation, in {seconds:.0f} s",
        f"checkpoint  {path}",
    ]
    exports = [c.exported for c in trainer.callbacks if isinstance(c, MergedExport)]  # type: ignore[attr-defined]
    lines += [f"merged      {_short(str(folder))}" for folder in exports if folder]
    if isinstance(trainer.logger, TensorBoardLogger):
        lines.append(f"look        tensorboard --logdir {_short(trainer.logger.save_dir)}")
    return [*lines, f"predict     echo 'A fine film.' | lora_pl predict --ckpt_path {path}"]


def _short(path: str) -> str:
    """Relative to the current folder where it lies below it."""
    whole = Path(path).resolve()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)
