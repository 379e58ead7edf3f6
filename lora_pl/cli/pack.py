"""Several trials of an ablation in one run of `fit`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule

from lora_pl.ablation.grid import Trial
from lora_pl.ablation.joint import JointData, JointTrials
from lora_pl.ablation.pack_record import PackRecord
from lora_pl.ablation.pack_size import STEPS, Cost, PackProbe, pack_size
from lora_pl.ablation.record import TrialResult
from lora_pl.cli.explained import explained
from lora_pl.cli.trainer import ClassifierCLI
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.reporting import say, silence


def train_pack(config: Path, folder: Path, data_seed: int | None, trials: Sequence[Trial]) -> list[TrialResult]:
    """Train LoRA trials together, silently; see `train_trial` for the arguments. A result per trial."""
    for trial in trials:
        shutil.rmtree(folder / trial.name, ignore_errors=True)
    with silence():
        return PackCLI(config, folder, data_seed, trials).record.results


def choose_pack_size(config: Path, folder: Path, data_seed: int | None, trials: Sequence[Trial]) -> int:
    """Measure a few steps of one trial and of two together, and say what follows."""
    if len(trials) < 2:
        return 1
    with silence():
        probes = [ProbeCLI(config, folder, data_seed, trials[:count]).probe for count in (1, 2)]
    costs: list[Cost] = [probe.cost for probe in probes]
    size = min(len(trials), pack_size(costs[0], costs[1], probes[1].free_bytes))
    ratio = costs[1].seconds_per_token / costs[0].seconds_per_token
    chosen = f"trials are packed by {size}" if size > 1 else "trials run one after another"
    say(f"a token of two packed trials costs {ratio:.2f} times one of a trial alone: {chosen}")
    return size


class PackCLI(ClassifierCLI):
    """`fit` that trains several trials together; the trials write their own logs and checkpoints."""

    def __init__(self, config: Path, folder: Path, data_seed: int | None, trials: Sequence[Trial]) -> None:
        self.trials, self.data_seed, self.folder = list(trials), data_seed, folder
        super().__init__(["fit", "--config", str(config), *trials[0].arguments()])

    def fit(self, model: LightningModule, datamodule: SentenceDataModule, **kwargs: Any) -> None:  # type: ignore[override]
        """Run instead of the trainer's `fit`: the model and the data are those of several trials."""
        seeds = [trial.seed if self.data_seed is None else self.data_seed for trial in self.trials]
        data = JointData(datamodule, seeds)
        packed = JointTrials(model, self.trials)  # type: ignore[arg-type]
        with explained(self.trainer):
            self.trainer.fit(packed, data, **kwargs)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Without logger and checkpoints of Lightning's, which know one model."""
        self.logs_runs = self._option("trainer").logger is not False
        return super().instantiate_trainer(**{**kwargs, "logger": False, "enable_checkpointing": False})

    def _callbacks(self, name: str, logs: bool) -> list[Callback]:
        writes = self._option("trainer").enable_checkpointing is not False
        self.record = PackRecord(self.folder, self.logs_runs, writes)
        return [self.record]

    def _saving(self, name: str) -> list[Callback]:
        """Nothing: a pack that is stopped starts anew."""
        return []

    def _run_name(self) -> str:
        return self.trials[0].name

    def _shows_bar(self) -> bool:
        return False


class ProbeCLI(PackCLI):
    """The first steps of a pack, to see what they cost; nothing is written."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """A few steps, and no validation."""
        limits = {"max_steps": STEPS, "limit_val_batches": 0, "num_sanity_val_steps": 0}
        return super().instantiate_trainer(**{**kwargs, **limits})

    def _callbacks(self, name: str, logs: bool) -> list[Callback]:
        self.probe = PackProbe()
        return [self.probe]
