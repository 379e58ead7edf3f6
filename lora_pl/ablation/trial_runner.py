"""Trains the trials of a study, one by one or jointly."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lora_pl.ablation.grid import Trial
from lora_pl.ablation.joint import JointData, JointTrials
from lora_pl.ablation.record import JointRecord, TrialRecord, TrialResult
from lora_pl.ablation.study import Outcome, Unit, concerns_all, run_or_mark
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.reporting import say, silence
from lora_pl.storage.checkpoint import SUFFIX
from lora_pl.training.run import Run
from lora_pl.training.run_options import OPTIONS
from lora_pl.training.trainer import as_list


@dataclass(frozen=True)
class TrialRunner:
    """Trains a unit of a study. A trial that fails is marked; if a joint trial fails, its unit runs one by one.

    It has plain values only, so that it can be sent to another process.
    """

    config: Mapping[str, Any]
    """What all trials share, in the layout of `lora_pl fit --config`."""
    folder: Path
    """Where trials have their folders."""
    data_seed: int | None = None
    """Draws every trial's data; by default each trial's own seed does."""

    def __call__(self, unit: Unit) -> list[Outcome]:
        """The outcome of each trial."""
        if len(unit) > 1:
            try:
                results = self.train_jointly(unit)
                return [Outcome.of(trial, result) for trial, result in zip(unit, results, strict=True)]
            except Exception as error:  # run alone, each trial shows whether it is at fault
                if concerns_all(error):
                    raise
                say(f"the joint trials from {unit[0].name} on failed ({error}); they run one by one")
        return [run_or_mark(trial, self.train) for trial in unit]

    def train(self, trial: Trial) -> TrialResult:
        """Train as `fit --seed_everything SEED` does, silently; a stopped trial is resumed."""
        if not any((self.folder / trial.name).glob(f"*{SUFFIX}")):
            self._clear([trial])
        options, record = self._trainer_options(trial), TrialRecord()
        if trial.method != "lora":  # full fine-tuning would write a whole encoder each time
            options["enable_checkpointing"] = False
        options["callbacks"].append(record)
        with silence():
            self._run(trial).fit(self._model(trial), self.data(trial), **options)
        return record.results[0]

    def train_jointly(self, trials: Sequence[Trial]) -> list[TrialResult]:
        """Train LoRA trials jointly, silently; stopped joint trials start again."""
        self._clear(trials)
        options = self._trainer_options(trials[0])
        record = JointRecord(
            self.folder,
            trials,
            logs=options.get("logger") is not False,
            checkpoints=options.get("enable_checkpointing") is not False,
        )
        options["callbacks"].append(record)
        options |= {"logger": False, "enable_checkpointing": False}  # Lightning's know one model
        with silence():
            joint = JointTrials(self._model(trials[0]), trials)
            data = JointData(self.data(trials[0]), [self._data_seed(trial) for trial in trials])
            self._run(trials[0], reports=False).fit(joint, data, **options)
        return record.results

    def data(self, trial: Trial) -> SentenceDataModule:
        """The trial's data."""
        config = trial.config(self.config)
        own = {"encoder": config["model"]["encoder"], "seed": self._data_seed(trial)}
        return SentenceDataModule(**{**config["data"], **own})

    def kind_of_data(self, trial: Trial) -> str:
        """The same for trials whose data differ in their seed alone."""
        config = trial.config(self.config)
        return repr((config["model"]["encoder"], config["data"]))

    def _model(self, trial: Trial) -> LoRAClassifier:
        own = {key: value for key, value in trial.config(self.config)["model"].items() if key != "encoder"}
        return LoRAClassifier.for_data(self.data(trial), **own)

    def _data_seed(self, trial: Trial) -> int:
        return trial.seed if self.data_seed is None else self.data_seed

    def _run(self, trial: Trial, reports: bool = True) -> Run:
        config = {"seed_everything": trial.seed, **trial.config(self.config), "run_name": trial.name}
        settings = {key: value for key, value in config.items() if key in OPTIONS}
        return Run(
            trial.name, resume=True, force=True, checkpoints=self.folder, logs=self.folder, config=config,
            reports=reports, **settings,
        )  # fmt: skip

    def _trainer_options(self, trial: Trial) -> dict[str, Any]:
        given = trial.config(self.config)["trainer"]
        options: dict[str, Any] = {key: instantiated(value) for key, value in given.items()}
        return {**options, "enable_progress_bar": False, "callbacks": as_list(options.get("callbacks"))}

    def _clear(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            shutil.rmtree(self.folder / trial.name, ignore_errors=True)


def instantiated(value: Any) -> Any:
    """`{"class_path": "module.Class", "init_args": {...}}` as an object, in lists and mappings too."""
    if isinstance(value, list):
        return [instantiated(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "class_path" not in value:
        return {key: instantiated(item) for key, item in value.items()}
    module, _, name = value["class_path"].rpartition(".")
    arguments = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
    return getattr(import_module(module), name)(**instantiated(arguments))
