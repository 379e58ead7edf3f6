"""Trains the trials of a study, one by one or jointly."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from lora_pl.ablation.grid import Trial
from lora_pl.ablation.joint import JointTrials
from lora_pl.ablation.joint_data import JointData, with_seed
from lora_pl.ablation.record import JointRecord, TrialRecord, TrialResult
from lora_pl.ablation.study import Outcome, Unit, concerns_all, run_or_mark
from lora_pl.ablation.table import options_text
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.errors import UserError
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.reporting import say, silence
from lora_pl.storage.checkpoint import SUFFIX
from lora_pl.training.run import Run
from lora_pl.training.run_config import CONFIG
from lora_pl.training.run_options import OPTIONS
from lora_pl.training.trainer import as_list

HASH = 16
"""Hexadecimal digits in the name of a group's folder."""
T = TypeVar("T")


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
        # one that has begun by itself is of a unit whose joint trials have failed
        if len(unit) > 1 and not any(self._is_begun(trial.name) for trial in unit):
            try:
                results = self.train_jointly(unit)
                return [Outcome.of(trial, result) for trial, result in zip(unit, results, strict=True)]
            except Exception as error:  # run alone, each trial shows whether it is at fault
                if concerns_all(error):
                    raise
                say(f"the joint trials from {unit[0].name} on failed ({error}); they run one by one")
        return [run_or_mark(trial, self.train) for trial in unit]

    def train(self, trial: Trial) -> TrialResult:
        """Train as `fit --seed_everything SEED` does, silently; a stopped trial is resumed.

        It starts over where it can't be resumed exactly: with other options or data, or on another device.
        """
        return self._exactly(trial.name, [trial], lambda: self._train(trial))

    def train_jointly(self, trials: Sequence[Trial]) -> list[TrialResult]:
        """Train LoRA trials jointly, silently; a stopped group is resumed, or starts over, as a trial is."""
        group = joint_name(trials)
        try:
            results = self._exactly(group, trials, lambda: self._train_jointly(group, trials))
        except Exception as error:
            if not concerns_all(error):
                self._clear([group])
            raise
        self._clear([group])
        return results

    def remove_groups(self) -> None:
        """Remove what stopped groups have left; for a study that has ended."""
        for path in self.folder.glob(f"joint-{'[0-9a-f]' * HASH}"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(f".joint-{'[0-9a-f]' * HASH}.lock"):
            path.unlink(missing_ok=True)

    def _exactly(self, run: str, trials: Sequence[Trial], train: Callable[[], T]) -> T:
        """Train as the run that has begun, or else from the start."""
        names = [trial.name for trial in trials]
        if self._is_begun(run):
            try:
                return train()
            except UserError as error:
                if error.key != "resume":
                    raise
                say(f"{', '.join(names)}: training starts over: {_without_advice(error)}")
        self._clear([run, *names])
        return train()

    def _train(self, trial: Trial) -> TrialResult:
        options, record, data = self._trainer_options(trial), TrialRecord(), self.data(trial)
        if trial.method != "lora":  # full fine-tuning would write a whole encoder each time
            options["enable_checkpointing"] = False
        options["callbacks"].append(record)
        with silence():
            self._run(trial, trial.name).fit(self._model(trial, data), data, **options)
        return record.results[0]

    def _train_jointly(self, group: str, trials: Sequence[Trial]) -> list[TrialResult]:
        options, data = self._trainer_options(trials[0]), self.data(trials[0])
        logs, checkpoints = (options.get(name) is not False for name in ("logger", "enable_checkpointing"))
        record = JointRecord(self.folder, trials, logs, checkpoints)
        options["callbacks"].append(record)
        options["logger"] = False  # Lightning's knows one model
        with silence():
            joint = JointTrials(self._uncast(_shared(trials), data), trials)
            drawn = JointData(data, [self._data_seed(trial) for trial in trials])
            self._run(trials[0], group, reports=False, keep_best=False).fit(joint, drawn, **options)
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

    def _model(self, trial: Trial, data: SentenceDataModule) -> LoRAClassifier:
        """Drawn by the trial's own seed, whatever has drawn its data."""
        own = {key: value for key, value in trial.config(self.config)["model"].items() if key != "encoder"}
        return LoRAClassifier.for_data(with_seed(data, trial.seed), **own)

    def _uncast(self, trial: Trial, data: SentenceDataModule) -> LoRAClassifier:
        """Its base is in fp32 until `setup`, whatever the `base_dtype`: DoRA starts from the norms of these weights."""
        model = self._model(replace(trial, options={**trial.options, "model.base_dtype": "auto"}), data)
        model.hparams["base_dtype"] = trial.model(self.config["model"]).get("base_dtype", "auto")
        return model

    def _data_seed(self, trial: Trial) -> int:
        return trial.seed if self.data_seed is None else self.data_seed

    def _run(self, trial: Trial, name: str, **own: Any) -> Run:
        config = {"seed_everything": trial.seed, **trial.config(self.config), "run_name": name}
        settings = {key: value for key, value in config.items() if key in OPTIONS}
        return Run(name, resume=True, checkpoints=self.folder, logs=self.folder, config=config, **own, **settings)

    def _trainer_options(self, trial: Trial) -> dict[str, Any]:
        given = trial.config(self.config)["trainer"]
        options: dict[str, Any] = {key: instantiated(value) for key, value in given.items()}
        return {**options, "enable_progress_bar": False, "callbacks": as_list(options.get("callbacks"))}

    def _is_begun(self, name: str) -> bool:
        """Whether a run has a checkpoint; a finished joint trial has one too, but no run of its own."""
        folder = self.folder / name
        return (folder / CONFIG).is_file() and any(folder.glob(f"*{SUFFIX}"))

    def _clear(self, names: Sequence[str]) -> None:
        for name in names:
            shutil.rmtree(self.folder / name, ignore_errors=True)


def _shared(trials: Sequence[Trial]) -> Trial:
    """The first trial with the options alone that all have: no other's own options may be settings of theirs."""
    first, *others = trials
    common = {
        key: value
        for key, value in first.options.items()
        if all(key in trial.options and trial.options[key] == value for trial in others)
    }
    return replace(first, options=common)


def joint_name(trials: Sequence[Trial]) -> str:
    """Names the folder of a group that has begun; other trials, or other options of theirs, have another."""
    made_of = repr([(trial.name, options_text(trial)) for trial in trials])
    return f"joint-{sha256(made_of.encode()).hexdigest()[:HASH]}"


def _without_advice(error: UserError) -> str:
    """Why a run can't be resumed, without what `fit` could do about it."""
    why = error.message.partition(", or ")[0]
    return why.rpartition("; ")[0] or why


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
