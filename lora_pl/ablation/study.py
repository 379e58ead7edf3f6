"""Running the trials of a study, and resuming one that was stopped."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_pl.ablation.grid import Trial
from lora_pl.ablation.record import TrialResult
from lora_pl.ablation.table import FAILED, ResultTable, Row, failed_row, trial_rows
from lora_pl.errors import UserError
from lora_pl.reporting import say
from lora_pl.storage.write_whole import write_whole
from lora_pl.training.resume.stop_signals import RunStopped

SETTINGS = "settings.json"
Unit = tuple[Trial, ...]
"""Trials that are trained together, mostly one."""
RunUnit = Callable[[Unit], "list[Outcome]"]
Launcher = Callable[[Sequence[Unit], RunUnit], Iterator["list[Outcome]"]]


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: its epochs, or why it went wrong."""

    trial: Trial
    result: TrialResult = field(default_factory=TrialResult)
    error: str = ""

    def rows(self) -> list[Row]:
        """Its rows of the table."""
        return [failed_row(self.trial, self.error)] if self.error else trial_rows(self.trial, self.result.epochs)


def one_after_another(units: Sequence[Unit], run: RunUnit) -> Iterator[list[Outcome]]:
    """The launcher that needs nothing: this process runs every unit."""
    for unit in units:
        yield run(unit)


def run_or_mark(trial: Trial, train: Callable[[Trial], TrialResult]) -> Outcome:
    """Train a trial; what goes wrong with it is its outcome, but for what concerns all of them."""
    try:
        result = train(trial)
        return Outcome(trial, result, "" if result.epochs else "stopped before its first epoch ended")
    except Exception as error:  # a trial may fail in any way; the others go on
        if concerns_all(error):
            raise
        return Outcome(trial, error=_reason(error))


def run_study(
    folder: Path, units: Sequence[Unit], settings: dict[str, Any], run: RunUnit, launch: Launcher
) -> list[str]:
    """Run every trial that the study's table does not hold yet, and keep the table up to date.

    A unit's rows enter the table together, when all its trials are finished; a unit that was stopped before that is
    resumed, and a trial that failed is tried again.

    Returns:
        The names of the trials that failed; the table says why.

    Raises:
        UserError: the folder holds a study of other settings.
    """
    table = open_study(folder, settings)
    finished = table.trials()
    unfinished = (tuple(trial for trial in unit if trial.name not in finished) for unit in units)
    left = [unit for unit in unfinished if unit]
    total = sum(map(len, units))
    done = total - sum(map(len, left))
    if done:
        say(f"{done} of {total} trials are in {table.path} already")
    started, first = time.monotonic(), done
    for outcomes in launch(left, run):
        for outcome in outcomes:
            write_metrics(folder / "trials" / outcome.trial.name, outcome)
        table.add(row for outcome in outcomes for row in outcome.rows())
        done += len(outcomes)
        pace = (time.monotonic() - started) / (done - first)
        for outcome in outcomes:
            say(f"{done}/{total}  {_told(outcome)}  about {_duration(pace * (total - done))} left")
    return [trial.name for unit in units for trial in unit if trial.name in table.trials(FAILED)]


def stored_setting(folder: Path, key: str) -> Any:
    """What the study in `folder` was started with; None where there is none."""
    path = folder / SETTINGS
    return json.loads(path.read_text(encoding="utf-8")).get(key) if path.is_file() else None


def check_study(folder: Path, settings: dict[str, Any]) -> None:
    """Raise a UserError if `folder` holds a study in which one of `settings` is another."""
    path = folder / SETTINGS
    if not path.is_file() and ResultTable(folder).rows:
        raise UserError("output", f"{folder} holds a table but no {SETTINGS}; give another --output")
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    differs = [key for key in settings if before.get(key) != settings[key]]
    if differs:
        key = differs[0]
        raise UserError(
            "output",
            f"{folder} holds a study with {key} = {before.get(key)}, not {settings[key]}; give another --output, "
            "or the same settings",
        )


def open_study(folder: Path, settings: dict[str, Any]) -> ResultTable:
    """The table of the study in `folder`, which is made where there is none; a UserError if it is another study's."""
    check_study(folder, settings)
    text = json.dumps(settings, indent=2, sort_keys=True)
    write_whole(folder / SETTINGS, lambda beside: beside.write_text(text, encoding="utf-8"))
    return ResultTable(folder)


def write_metrics(folder: Path, outcome: Outcome) -> None:
    """`metrics.json` of a trial: its epochs by `epoch_1`, ..., and its settings."""
    trial = outcome.trial
    epochs = {
        f"epoch_{row['epoch']}": {
            "train_loss": row["train_loss"],
            "val_loss": row["validation_loss"],
            "val_acc" if row["metric"] == "accuracy" else f"val_{row['metric']}": row["validation"],
        }
        for row in outcome.result.epochs
    }
    config = {
        "method": trial.method,
        "r": trial.rank,
        "alpha": trial.alpha,
        "target_modules": list(trial.targets),
        "learning_rate": trial.learning_rate,
        "seed": trial.seed,
    }
    content = {"metrics": epochs, "config": config, "loss_curve": outcome.result.curve}
    content |= {"error": outcome.error} if outcome.error else {}
    text = json.dumps(content, indent=2)
    write_whole(folder / "metrics.json", lambda beside: beside.write_text(text, encoding="utf-8"))


def _told(outcome: Outcome) -> str:
    if outcome.error:
        return f"{outcome.trial.name}: failed: {outcome.error}"
    epochs = outcome.result.epochs
    values, seconds = [row["validation"] for row in epochs], sum(row["seconds"] for row in epochs)
    return f"{outcome.trial.name}: {epochs[0]['metric']} {values[-1]:.4f} (best {max(values):.4f}), {seconds:.0f} s"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _reason(error: BaseException) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}"[:300]


def concerns_all(error: BaseException | None) -> bool:
    """Whether the error, or one that led to it, is a stop that was asked for or a full disk."""
    while error is not None:
        if isinstance(error, RunStopped) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
            return True
        error = error.__cause__ or error.__context__
    return False
