"""What an ablation runs at a time: one trial, or a pack of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_pl.ablation.grid import Trial
from lora_pl.ablation.record import TrialResult
from lora_pl.ablation.study import Outcome, Unit, concerns_all, run_or_mark
from lora_pl.cli.pack import train_pack
from lora_pl.cli.trial import train_trial
from lora_pl.reporting import say


def units_of(trials: Sequence[Trial], size: int) -> list[Unit]:
    """LoRA trials in packs of `size`, the others by themselves; the same for the same grid, whatever is finished."""
    units: list[Unit] = []
    adapted = [trial for trial in trials if trial.method == "lora"]
    for trial in trials:
        if trial.method != "lora":
            units.append((trial,))
        elif adapted.index(trial) % size == 0:
            start = adapted.index(trial)
            units.append(tuple(adapted[start : start + size]))
    return units


@dataclass(frozen=True)
class UnitRunner:
    """Trains a unit; a trial that fails is marked, and a pack in which one fails is run one after another.

    It can be sent to another process.
    """

    config: Path
    folder: Path
    data_seed: int | None

    def __call__(self, unit: Unit) -> list[Outcome]:
        """The outcome of each trial."""
        if len(unit) > 1:
            try:
                results = train_pack(self.config, self.folder, self.data_seed, unit)
                return [Outcome(trial, result) for trial, result in zip(unit, results, strict=True)]
            except Exception as error:  # whatever it is, each trial alone shows whose it is
                if concerns_all(error):
                    raise
                say(f"the pack of {unit[0].name} failed ({error}); its trials run one after another")
        return [run_or_mark(trial, self._train) for trial in unit]

    def _train(self, trial: Trial) -> TrialResult:
        return train_trial(self.config, self.folder, self.data_seed, trial)
