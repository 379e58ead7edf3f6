"""Runs the trials of a study, and resumes a study that was stopped."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_pl.ablation.grid import Trial, jointly
from lora_pl.ablation.groups import apart
from lora_pl.ablation.record import TrialResult
from lora_pl.ablation.table import FAILED, ResultTable, Row, best_known, failed_row, options_text, trial_rows
from lora_pl.errors import UserError, first_line
from lora_pl.reporting import say
from lora_pl.storage.schema import parse_json, require_json
from lora_pl.storage.write_whole import write_text_whole
from lora_pl.training.resume.same_run import former_defaults
from lora_pl.training.resume.stop_signals import RunStopped

SETTINGS = "settings.json"
PACK = "pack"
"""The setting that may change between two starts of a study: how many trials are trained jointly."""
AXES = "axes of "
"""Begins the settings that name an arm's axes; an arm may be added later."""
Unit = tuple[Trial, ...]
"""Trials that are trained together; mostly one."""
RunUnit = Callable[[Unit], "list[Outcome]"]
Launcher = Callable[[Sequence[Unit], RunUnit], Iterator["list[Outcome]"]]
AUTO = 4
"""The most trials that `--pack auto` trains jointly."""
NOT_VALIDATED = "it ended before its first validation; give more --trainer.max_steps or a --trainer.val_check_interval"


@dataclass(frozen=True)
class Outcome:
    """A trial's result, or why it failed."""

    trial: Trial
    result: TrialResult = field(default_factory=TrialResult)
    error: str = ""

    @classmethod
    def of(cls, trial: Trial, result: TrialResult) -> Outcome:
        """A trial that ended; it failed if it was never validated."""
        return cls(trial, result, "" if result.epochs else NOT_VALIDATED)

    def rows(self) -> list[Row]:
        """Its rows of the table."""
        return [failed_row(self.trial, self.error)] if self.error else trial_rows(self.trial, self.result.epochs)


def one_after_another(units: Sequence[Unit], run: RunUnit) -> Iterator[list[Outcome]]:
    """The default launcher: this process runs every unit."""
    return map(run, units)


def units_of(trials: Sequence[Trial], size: int) -> list[Unit]:
    """Trials that can be trained jointly `size` at a time; the same for the same grid, whatever is finished."""
    alike = apart(trials, jointly)
    units = [tuple(group[start : start + size]) for group in alike for start in range(0, len(group), size)]
    return sorted(units, key=lambda unit: trials.index(unit[0]))


def auto_size(trials: Sequence[Trial], workers: int) -> int:
    """How many trials to train jointly such that every worker has some: at most `AUTO`."""
    adapted = sum(not trial.alone for trial in trials)
    return max(1, min(AUTO, -(-adapted // workers)))


def run_or_mark(trial: Trial, train: Callable[[Trial], TrialResult]) -> Outcome:
    """Train a trial; an error is its outcome, unless it concerns all trials."""
    try:
        return Outcome.of(trial, train(trial))
    except Exception as error:  # a trial may fail in any way; the others go on
        if concerns_all(error):
            raise
        return Outcome(trial, error=f"{type(error).__name__}: {first_line(error)}"[:300])


def run_study(
    folder: Path, units: Sequence[Unit], settings: dict[str, Any], run: RunUnit, launch: Launcher
) -> list[str]:
    """Run every trial that is not in the study's table yet, and keep the table up to date.

    A unit's rows enter the table together, when all its trials are finished. A unit that was stopped before that is
    resumed, and a failed trial is run again. Returns the names of the trials that failed; the table says why.

    Raises:
        UserError: `output`, the folder holds a trial of the same name and other options.
    """
    settings = {**(stored_settings(folder) or {}), **settings}
    write_text_whole(folder / SETTINGS, json.dumps(settings, indent=2, sort_keys=True))
    table = ResultTable(folder)
    _require_same_options(table, units)
    finished = table.trials()
    unfinished = (tuple(trial for trial in unit if trial.name not in finished) for unit in units)
    left = [unit for unit in unfinished if unit]
    total = sum(map(len, units))
    done = total - sum(map(len, left))
    if done:
        say(f"{done} of {total} trials are already in {table.path}")
    started, first = time.monotonic(), done
    for outcomes in launch(left, run) if left else ():
        for outcome in outcomes:
            _write_metrics(folder / "trials" / outcome.trial.name, outcome, settings)
        table.add(row for outcome in outcomes for row in outcome.rows())
        done += len(outcomes)
        rest = (time.monotonic() - started) / (done - first) * (total - done)
        about = f"{rest / 60:.0f} min" if rest >= 90 else f"{rest:.0f} s"
        for outcome in outcomes:
            say(f"{done}/{total}  {_told(outcome)}  about {about} left")
    failed = table.trials(FAILED)
    return [trial.name for unit in units for trial in unit if trial.name in failed]


def stored_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the study in `folder`; None where there is none, a UserError, `output`, for a damaged file."""
    path = folder / SETTINGS
    if not path.is_file():
        return None
    settings = parse_json(path.read_bytes(), "output", str(path))
    require_json(settings, dict[str, Any], "output", f"{path}: ")
    return dict(settings)


def check_study(folder: Path, settings: dict[str, Any]) -> None:
    """Raise a UserError, `output`, if `folder` holds a study in which one of `settings` differs."""
    before = stored_settings(folder)
    if before is None:
        if ResultTable(folder).rows:
            raise UserError("output", f"{folder} holds a table but no {SETTINGS}; give another --output")
        return
    former = former_defaults()
    for key, value in settings.items():
        stored = before.get(key, value if key.startswith(AXES) else former.get(key))
        if stored != value:
            raise UserError(
                "output",
                f"{folder} holds a study with {key} = {stored}, not {value}; give another --output, or the same "
                "settings",
            )


def _require_same_options(table: ResultTable, units: Sequence[Unit]) -> None:
    """Raise a UserError, `output`, if the table has a trial of the same name and other options."""
    before = {row["trial"]: row["options"] for row in table.rows}
    for trial in (trial for unit in units for trial in unit):
        if before.get(trial.name, now := options_text(trial)) != now:
            raise UserError(
                "output",
                f"{table.path} holds {trial.name} with the options {before[trial.name]}, not {now}; give another "
                "--output, or the arm another name",
            )


def _write_metrics(folder: Path, outcome: Outcome, settings: Mapping[str, Any]) -> None:
    """`metrics.json` of a trial: `epoch_1`, ..., its configuration and its loss curve."""
    epochs = {
        f"epoch_{row['epoch']}": {
            "train_loss": row["train_loss"],
            "val_loss": row["validation_loss"],
            "val_acc" if row["metric"] == "accuracy" else f"val_{row['metric']}": row["validation"],
        }
        for row in outcome.result.epochs
    }
    config = {**settings, **outcome.trial.options, "seed_everything": outcome.trial.seed}
    content = {"metrics": epochs, "config": config, "loss_curve": outcome.result.curve}
    content |= {"error": outcome.error} if outcome.error else {}
    write_text_whole(folder / "metrics.json", json.dumps(content, indent=2))


def _told(outcome: Outcome) -> str:
    if outcome.error:
        return f"{outcome.trial.name}: failed: {outcome.error}"
    epochs = outcome.result.epochs
    metric, values = epochs[0]["metric"], [row["validation"] for row in epochs]
    best, seconds = best_known(metric, values), sum(row["seconds"] for row in epochs)
    return f"{outcome.trial.name}: {metric} {values[-1]:.4f} (best {best:.4f}), {seconds:.0f} s"


def concerns_all(error: BaseException | None) -> bool:
    """Whether the error, or a cause of it, is a requested stop or a full disk."""
    while error is not None:
        if isinstance(error, RunStopped) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
            return True
        error = error.__cause__ or error.__context__
    return False
