"""The metrics of the validation by name, and the one that chooses the best checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lora_pl.data.task import Task
from lora_pl.errors import UserError


def mode_of(metric: str) -> Literal["min", "max"]:
    """Which values are better: min of `loss`, `val/loss_mismatched`, ...; max of every other metric."""
    return "min" if metric.removeprefix("val/").startswith("loss") else "max"


def require_monitor(monitor: str | None, known: Sequence[str]) -> None:
    """Raise a UserError, `model.monitor`, if it is given and is none of the metrics that are reported."""
    if monitor is not None and monitor not in known:
        raise UserError("model.monitor", f"expected a metric of the validation: {', '.join(known)}; got {monitor!r}")


def reported(task: Task, splits: int | None = None) -> list[str]:
    """The names of what is logged of a task's validation, without `val/`; by default of all splits that it has."""
    named = list(enumerate(task.validation))[:splits]
    return [f"{name}{suffix(number, split)}" for number, split in named for name in (*task.metrics, "loss")]


def suffix(number: int, split: str) -> str:
    """What a further split's names end with."""
    return f"_{split.removeprefix('validation_')}" if number else ""
