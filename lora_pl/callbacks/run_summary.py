"""What a run ends with."""

from __future__ import annotations

import itertools
import shlex
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from rich.rule import Rule
from torch import Tensor

from lora_pl.callbacks.best import best_keeper
from lora_pl.callbacks.merged_export import MergedExport
from lora_pl.callbacks.tensorboard import tensorboard_loggers
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.data.own_files import OwnFiles
from lora_pl.data.task import Task
from lora_pl.reporting import say

CORRELATIONS = ("val/matthews", "val/pearson", "val/spearman")
ROUNDING = 1e-6
"""Of an accuracy in fp32."""


class RunSummary(Callback):
    """Prints the best result, its checkpoint and the commands that come next."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started, self._trains = time.monotonic(), False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there is something to train, which there is not where all steps are done."""
        self._trains = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary."""
        if not self._trains:
            say(f"nothing to train: the run ends at step {trainer.global_step}")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
                say(f"stopped early: {callback.stopping_reason_message}")
        best = best_keeper(trainer, pl_module)
        names = itertools.product(("last_model_path", "best_model_path"), trainer.checkpoint_callbacks)
        others = (getattr(callback, name, "") for name, callback in names)
        checkpoint = (best and best.best_model_path) or next(filter(None, others), "")
        if not checkpoint:
            return
        say(Rule("Done", align="left"))
        monitor, score = str(pl_module.monitor), best.best_model_score if best else None
        say(f"{_result(trainer, monitor, score)}, in {time.monotonic() - self._started:.0f} s")
        latest = trainer.callback_metrics.get(monitor)
        if (reached := latest if score is None else score) is not None:
            _say_if_nothing_was_learned(trainer, monitor, float(reached))
        # no frame: commands are copied
        for line in _lines(trainer, _short(checkpoint)):
            say(line)


def _result(trainer: Trainer, monitor: str, best: Tensor | None) -> str:
    name, latest = monitor.removeprefix("val/"), trainer.callback_metrics.get(monitor)
    if best is not None:
        return f"best {name} {float(best):.4f} on validation"
    if latest is not None:  # a checkpoint without a monitored metric
        return f"{name} {float(latest):.4f} on validation"
    return f"{trainer.global_step:,} steps without validation"


def _say_if_nothing_was_learned(trainer: Trainer, monitor: str, best: float) -> None:
    """Compare with one answer for all sentences, of which a correlation is 0, or NaN."""
    data: object = trainer.datamodule  # type: ignore[attr-defined]
    if monitor in CORRELATIONS:
        least, what = 0.0, "one answer for all sentences"
    elif monitor == "val/accuracy" and isinstance(data, SentenceDataModule):
        least = data.largest_share(data.validation_splits[0])
        what = f"the most frequent label, {least:.1%} of the sentences"
    else:
        return
    if best > least + ROUNDING:  # NaN is not
        return
    say(
        f"This is no better than {what}: take another learning rate "
        "(--model.learning_rate), more epochs (--trainer.max_epochs), or configs/recipe.yaml"
    )


def _lines(trainer: Trainer, checkpoint: str) -> list[str]:
    exports = [c.exported for c in trainer.callbacks if isinstance(c, MergedExport)]  # type: ignore[attr-defined]
    lines = [f"checkpoint  {checkpoint}", *(f"merged      {_short(str(folder))}" for folder in exports if folder)]
    folders = [_short(logger.save_dir) for logger in tensorboard_loggers(trainer)]
    lines += [f"look        tensorboard --logdir {folder}" for folder in folders]
    return [*lines, f"predict     {_example_command(trainer, checkpoint)}"]


def _example_command(trainer: Trainer, checkpoint: str) -> str:
    """A command that asks the checkpoint about an example of its task, or about the own file that validated it."""
    data: object = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(data, SentenceDataModule) and isinstance(data.own, OwnFiles):
        file = data.own.places[-1]
        named = zip(("text_column", "text_pair_column"), data.text_columns, strict=False)
        columns = [f"--data.{option} {shlex.quote(column)}" for option, column in named]
        given = ["--ckpt_path", shlex.quote(checkpoint), "--input", shlex.quote(_short(file)), *columns]
        return " ".join(["lora_pl predict", *given])
    task: Task = trainer.lightning_module.task  # type: ignore[assignment]
    return task.example_command(checkpoint)


def _short(path: str) -> str:
    """Relative to the current folder, if below it."""
    whole = Path(path).resolve()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)
