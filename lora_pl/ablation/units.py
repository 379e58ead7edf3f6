"""What a study trains at a time: one trial, or several jointly."""

from __future__ import annotations

from collections.abc import Sequence

from lora_pl.ablation.grid import Trial
from lora_pl.ablation.study import Unit

AUTO = 4
"""The most trials that `--pack auto` trains jointly."""


def units_of(trials: Sequence[Trial], size: int) -> list[Unit]:
    """LoRA trials `size` at a time, the others alone; the same for the same grid, whatever is finished."""
    units: list[Unit] = []
    adapted = [trial for trial in trials if trial.method == "lora"]
    for trial in trials:
        if trial.method != "lora":
            units.append((trial,))
        elif adapted.index(trial) % size == 0:
            start = adapted.index(trial)
            units.append(tuple(adapted[start : start + size]))
    return units


def auto_size(trials: Sequence[Trial], workers: int) -> int:
    """How many trials to train jointly such that no worker goes without: at most `AUTO`."""
    adapted = sum(trial.method == "lora" for trial in trials)
    return max(1, min(AUTO, -(-adapted // workers)))
