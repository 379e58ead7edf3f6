"""A training run with its folders, callbacks and trainer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor

from lora_pl.callbacks.confusion_figure import ConfusionFigure
from lora_pl.callbacks.epoch_lines import EpochLines
from lora_pl.callbacks.hparams_record import HparamsRecord
from lora_pl.callbacks.parameter_report import ParameterReport
from lora_pl.callbacks.precision_report import PrecisionReport
from lora_pl.callbacks.progress_bar import ProgressBar
from lora_pl.callbacks.run_summary import RunSummary
from lora_pl.callbacks.throughput import Throughput
from lora_pl.errors import UserError
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.storage.checkpoint import BEST, LAST, SUFFIX
from lora_pl.training.early_stopping import PatientStopping
from lora_pl.training.explained import explained
from lora_pl.training.resume.conditions import require_resumable
from lora_pl.training.resume.exact_resume import ExactResume
from lora_pl.training.resume.same_run import check_same_run, checkpoint_to_resume
from lora_pl.training.resume.saving import BestCheckpoint, LastCheckpoint, SavePoints
from lora_pl.training.run_config import CONFIG, Configuration, RunConfig, configuration_of
from lora_pl.training.run_folder import CHECKPOINTS, LOGS, require_free, require_name
from lora_pl.training.run_lock import LockedRun, run_lock
from lora_pl.training.run_log import run_logger
from lora_pl.training.run_options import OPTIONS
from lora_pl.training.trainer import as_list, ignore_advice, make_trainer, own_bar, settled, shows_bar


class Run:
    """A named training run with the reports, checkpoints and exact resume of `lora_pl fit`.

    Example:
        >>> data = SentenceDataModule(source="sample")  # doctest: +SKIP
        >>> model = LoRAClassifier.for_data(data, learning_rate=3e-3, schedule="linear")  # doctest: +SKIP
        >>> run = Run("notebook", resume=True)  # doctest: +SKIP
        >>> run.fit(model, data, max_epochs=4)  # doctest: +SKIP
        >>> run.best_checkpoint  # doctest: +SKIP
        PosixPath('checkpoints/notebook/best.ckpt')

    Args:
        name: Names its folders, `checkpoints/NAME` and `logs/NAME`.
        resume: Whether to resume the run from its newest whole checkpoint, if it has one. An option that affects the
            result must then be as in the saved run.
        force: Whether to resume although options differ.
        save_every_steps: Optimizer steps between checkpoints, beside those after each validation.
        save_every_minutes: Minutes between checkpoints.
        checkpoints: The folder of all runs' checkpoints.
        logs: The folder of all runs' logs.
        ckpt_path: The checkpoint to start from instead of the newest.
        config: The configuration to save; by default that of the model, the data and the trainer's options.
        reports: Whether to report parameters, precision, progress and speed.
        early_stopping_patience: Validations without a new best after which the run ends; by default it does not.
        keep_best: Whether to keep `best.ckpt`, for which the model logs its `monitor`.

    Raises:
        UserError: `run_name`, the name is no name of a folder.
    """

    def __init__(
        self,
        name: str,
        resume: bool = False,
        force: bool = False,
        save_every_steps: int | None = None,
        save_every_minutes: float | None = 10,
        checkpoints: str | Path = CHECKPOINTS,
        logs: str | Path = LOGS,
        ckpt_path: str | Path | None = None,
        config: Configuration | None = None,
        reports: bool = True,
        early_stopping_patience: int | None = None,
        keep_best: bool = True,
    ) -> None:
        require_name(name)
        self.name, self.resume, self.force = name, resume, force
        self.save_every_steps, self.save_every_minutes = save_every_steps, save_every_minutes
        self.folder, self.logs = Path(checkpoints) / name, Path(logs)
        self.ckpt_path = Path(ckpt_path) if ckpt_path else None
        self.config, self.reports = config, reports
        self.early_stopping_patience, self.keep_best = early_stopping_patience, keep_best

    @property
    def best_checkpoint(self) -> Path:
        """At the best validation by the model's `monitor`."""
        return self.folder / f"{BEST}{SUFFIX}"

    @property
    def last_checkpoint(self) -> Path:
        """At the last saved step."""
        return self.folder / f"{LAST}{SUFFIX}"

    def fit(self, model: LightningModule, data: LightningDataModule, **trainer_options: Any) -> None:
        """Train, or resume training.

        Args:
            model: A `LoRAClassifier`.
            data: Its data.
            trainer_options: Those of `lightning.Trainer`; by default 3 epochs in the fastest precision.

        Raises:
            UserError: `run_name`, the run exists and `resume` is false, or another process uses it; `resume`, options,
                data or processes differ from the saved run, or a feature in use can't be resumed exactly;
                `checkpoint...`, no checkpoint is whole; `model.start_from`, a new run's start is missing; `trainer...`,
                an option that does not work here; `early_stopping_patience`, it is below 1, or the callbacks have an
                EarlyStopping too.
        """
        options = settled(trainer_options)
        with run_lock(self.folder) if _saves(options) else nullcontext():
            checkpoint = self._checkpoint()
            if checkpoint is None and isinstance(model, LoRAClassifier):
                model.require_start()
            if self._strict and checkpoint is not None:
                check_same_run(checkpoint.with_name(CONFIG), self._configuration(model, data, options))
                require_resumable(options)
            trainer = self._trainer(options, checkpoint)
            if checkpoint is not None:  # which has what a new model would take from the data
                model.awaits_data = False  # type: ignore[assignment]
            with warnings.catch_warnings(), explained(trainer):
                ignore_advice()
                trainer.fit(model, datamodule=data, ckpt_path=checkpoint)

    def trainer(self, **options: Any) -> Trainer:
        """The trainer that `fit` uses to start the run, with the run's callbacks before and after those in `options`.

        Raises:
            UserError: `resume`, the run has a checkpoint, from which `fit` alone resumes.
        """
        checkpoint = self._checkpoint()
        if checkpoint is not None:
            raise UserError("resume", f"{checkpoint} would be overwritten; resume by Run.fit, or choose another name")
        return self._trainer(settled(options), None, [LockedRun(self.folder)])

    @property
    def _strict(self) -> bool:
        """Whether the run goes on as the saved one or not at all."""
        return self.resume and not self.force

    def _checkpoint(self) -> Path | None:
        checkpoint = self.ckpt_path
        if checkpoint is None and self.resume:
            checkpoint = checkpoint_to_resume(self.folder)
        require_free(self.folder, checkpoint)
        return checkpoint

    def _trainer(self, options: Mapping[str, Any], checkpoint: Path | None, first: Sequence[Callback] = ()) -> Trainer:
        own = dict(options)
        if options.get("logger") in (None, True):
            own["logger"] = run_logger(self.logs, self.name, checkpoint)
        configuration = partial(self._configuration, options=options)
        own["callbacks"] = [
            *([*first, *self._saving()] if _saves(options) else []),
            *self._stopping(options),
            *as_list(options.get("callbacks")),
            *(self._reports(options, bool(own["logger"])) if self.reports else []),
            RunConfig(configuration, self.folder if _saves(options) else None),
        ]
        own["enable_progress_bar"] = shows_bar(options) and (self.reports or own_bar(options))
        return make_trainer(own)

    def _saving(self) -> list[Callback]:
        """The callbacks that make a run resumable; they come first."""
        best, last = BestCheckpoint(self.folder) if self.keep_best else None, LastCheckpoint(self.folder)
        points = SavePoints(best, last, self.save_every_steps, self.save_every_minutes)
        return [ExactResume(self._strict), points, *([best] if best else []), last]

    def _stopping(self, options: Mapping[str, Any]) -> list[Callback]:
        if self.early_stopping_patience is None:
            return []
        if any(isinstance(callback, EarlyStopping) for callback in as_list(options.get("callbacks"))):
            raise UserError(
                "early_stopping_patience", "the callbacks have an EarlyStopping already; leave one of the two out"
            )
        return [PatientStopping(self.early_stopping_patience)]

    def _reports(self, options: Mapping[str, Any], logs: bool) -> list[Callback]:
        progress = [] if own_bar(options) else [ProgressBar() if shows_bar(options) else EpochLines()]
        shown = [ParameterReport(), PrecisionReport(), Throughput(), ConfusionFigure(), RunSummary()]
        logged = [HparamsRecord(), LearningRateMonitor("step")] if logs else []
        return [*progress, *shown, *logged]

    def _configuration(
        self, model: LightningModule, data: LightningDataModule | None, options: Mapping[str, Any]
    ) -> Configuration:
        if self.config is not None:
            return self.config
        settings = {name: getattr(self, name) for name in OPTIONS}
        return {**configuration_of(model, data, options), "run_name": self.name, **settings}


def _saves(options: Mapping[str, Any]) -> bool:
    return options.get("enable_checkpointing") is not False and not options.get("fast_dev_run")
