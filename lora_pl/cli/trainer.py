"""fit, validate and test, by LightningCLI."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from lora_pl.callbacks.epoch_lines import EpochLines
from lora_pl.callbacks.finite_gradients import FiniteGradients
from lora_pl.callbacks.hparams_record import HparamsRecord
from lora_pl.callbacks.parameter_report import ParameterReport
from lora_pl.callbacks.precision_report import PrecisionReport
from lora_pl.callbacks.progress_bar import ProgressBar
from lora_pl.callbacks.run_summary import RunSummary
from lora_pl.callbacks.throughput import Throughput
from lora_pl.cli.checkpoint_defaults import checkpoint_defaults, early_value, option_value
from lora_pl.cli.explained import explained
from lora_pl.cli.parser import Parser
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.errors import UsageError, UserError, first_line
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.model.precision import default_precision
from lora_pl.reporting import say
from lora_pl.storage.checkpoint import WholeFileCheckpointIO, read_checkpoint
from lora_pl.training.resume.exact_resume import RESUME_KEY, ExactResume
from lora_pl.training.resume.run_checkpoints import BestCheckpoint, LastCheckpoint
from lora_pl.training.resume.same_run import check_same_run, checkpoint_to_resume
from lora_pl.training.resume.save_points import SavePoints
from lora_pl.training.run_config import CONFIG, RunConfig, config_text
from lora_pl.training.run_folder import CHECKPOINTS, LOGS, run_name

SKIPPED = {"model", "datamodule", "weights_only"}
SKIPPED_ARGUMENTS = {
    "fit": {*SKIPPED, "train_dataloaders", "val_dataloaders"},
    "validate": {*SKIPPED, "dataloaders", "verbose"},
    "test": {*SKIPPED, "dataloaders", "verbose"},
    "predict": {*SKIPPED, "dataloaders", "return_predictions"},
}
TRAINER_DEFAULTS = {"max_epochs": 3, "enable_model_summary": False, "log_every_n_steps": 10}


def run(args: list[str]) -> None:
    """Run one of the three verbs, `args[0]`."""
    quiet_libraries()
    ClassifierCLI(args)


class ClassifierCLI(LightningCLI):
    """LightningCLI for one verb at a time, with the project's defaults, callbacks and folders.

    Values come from the flags, else from `--config`, else from the checkpoint of `--ckpt_path`, else from the typed
    defaults.
    """

    checkpoints, logs = CHECKPOINTS, LOGS
    """The folders that hold the runs' own."""

    def __init__(self, args: list[str], parser_kwargs: dict[str, Any] | None = None) -> None:
        self.verb = args[0]
        super().__init__(
            LoRAClassifier,
            SentenceDataModule,
            save_config_callback=RunConfig if self.verb == "fit" else None,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs=parser_kwargs,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The verb that was asked for: the others' parsers are not built."""
        return {self.verb: SKIPPED_ARGUMENTS[self.verb]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The project's own options, and what model and data share."""
        parser.link_arguments("model.encoder", "data.encoder")
        parser.link_arguments("data.max_length", "model.max_length")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("data", "model.task", compute_fn=_task_name, apply_on="instantiate")
        parser.link_arguments("data", "model.label_names", compute_fn=_label_names, apply_on="instantiate")
        parser.link_arguments("data", "model.pairs", compute_fn=_pairs, apply_on="instantiate")
        if self.verb == "fit":
            parser.add_argument(
                "--run_name", type=str | None, help="Names the run's folders; by default configuration and time."
            )
            parser.add_argument("--resume", action="store_true", help="Go on with the run, or start it.")
            parser.add_argument("--force", action="store_true", help="Resume though options have changed.")
            parser.add_argument("--save_every_steps", type=int | None, help="Optimizer steps between checkpoints.")
            parser.add_argument("--save_every_minutes", type=float | None, default=10, help="Minutes between them.")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the flags over the checkpoint's own settings."""
        given = [str(arg) for arg in args]  # type: ignore[union-attr]
        self.config_file = option_value(given, "--config", "-c")
        # flags alone: the configuration that a run saves must not force its next start
        self.log_steps, self.resumes, self.forced = 0, self.verb == "fit" and "--resume" in given, "--force" in given
        checkpoint = self._resumed(given) if self.resumes else early_value(given, "ckpt_path")
        if checkpoint is not None:
            stored = read_checkpoint(checkpoint)
            self.log_steps = stored.get(RESUME_KEY, {}).get("log_steps", 0)
            # a run that is resumed has its whole configuration already: in the command, or saved beside it
            if not (self.resumes and Path(checkpoint).with_name(CONFIG).is_file()):
                verbs = cast(Parser, self._subcommand_parsers[self.verb])
                verbs.set_defaults(checkpoint_defaults(stored, given, verbs.known_keys()))
            given = self._with_saved_configuration(given, checkpoint)
            if self.resumes:
                given += ["--ckpt_path", checkpoint]
        self.config = parser.parse_args(given)
        if self.verb != "fit" and not self._option("ckpt_path"):
            raise UsageError("ckpt_path: expected --ckpt_path checkpoints/NAME/best.ckpt, got none")

    def _resumed(self, given: list[str]) -> str | None:
        name = early_value(given, "run_name")
        if option_value(given, "--ckpt_path"):
            raise UsageError("resume: expected --resume or --ckpt_path, got both")
        path = checkpoint_to_resume(CHECKPOINTS / name if name else None)
        return str(path) if path else None

    def _with_saved_configuration(self, given: list[str], checkpoint: str) -> list[str]:
        """A run that is resumed without `--config` goes on with the configuration beside its checkpoint."""
        saved = Path(checkpoint).with_name(CONFIG)
        if self.verb != "fit" or self.config_file or not saved.is_file():
            return given
        return [self.verb, "--config", str(saved), *given[1:]]

    def _parse_ckpt_path(self) -> None:
        """Done in `parse_arguments`, where flags win; LightningCLI would let the checkpoint win."""

    def before_instantiate_classes(self) -> None:
        """Settle the precision, and refuse what could not work."""
        trainer = self._option("trainer")
        _require_whole_model(trainer.strategy)
        if trainer.precision is None:
            trainer.precision = default_precision(str(trainer.accelerator))
            say(f"precision {trainer.precision}, what the device does well; --trainer.precision overrides it")
        if self.resumes and self._option("ckpt_path") and not self.forced:
            given = yaml.safe_load(config_text(self._parser(self.verb), self.config[self.verb]))
            check_same_run(Path(self._option("ckpt_path")).with_name(CONFIG), given)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the project's callbacks, logger and way of writing checkpoints."""
        config = self._get(self.config_init, "trainer")
        name = self._run_name() if self.verb == "fit" else ""
        if self.verb != "fit":
            kwargs["logger"] = False
        elif "logger" not in kwargs and config.logger in (None, True):
            # on resume, points that the run logged after its checkpoint are logged again
            purge: dict[str, Any] = {"purge_step": self.log_steps} if self.log_steps else {}
            kwargs["logger"] = TensorBoardLogger(self.logs, name=name, version="", default_hp_metric=False, **purge)
        callbacks = self._callbacks(name, logs=bool(kwargs.get("logger", config.logger)))
        kwargs["enable_progress_bar"] = self._shows_bar()
        kwargs["callbacks"] = [*self._saving(name), *_as_list(config.callbacks), *callbacks]
        kwargs["plugins"] = [*_as_list(config.plugins), WholeFileCheckpointIO()]
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError) as error:  # an unknown accelerator, strategy, ...
            raise UserError("trainer", first_line(error)) from error

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Run instead of the trainer's `fit`: failures say what to do."""
        with explained(self.trainer):
            self.trainer.fit(model, **kwargs)

    def _callbacks(self, name: str, logs: bool) -> list[Callback]:
        callbacks: list[Callback] = []
        if self._shows_bar():
            callbacks.append(ProgressBar())  # a rich bar would redraw itself over the summary
        elif self.verb == "fit":
            callbacks.append(EpochLines())
        if self.verb != "fit":
            return callbacks
        callbacks += [ParameterReport(), PrecisionReport(), FiniteGradients(), Throughput(), RunSummary()]
        if logs:
            callbacks += [HparamsRecord(), LearningRateMonitor("step")]
        return callbacks

    def _saving(self, name: str) -> list[Callback]:
        """What makes a run resumable; first of all callbacks."""
        config = self._option("trainer")
        if self.verb != "fit" or config.enable_checkpointing is False or config.fast_dev_run:
            return []
        best, last = BestCheckpoint(self.checkpoints / name), LastCheckpoint(self.checkpoints / name)
        points = SavePoints(best, last, self._option("save_every_steps"), self._option("save_every_minutes"))
        return [ExactResume(), points, best, last]

    def _shows_bar(self) -> bool:
        """Where a terminal is there to redraw it."""
        wanted = self._option("trainer").enable_progress_bar is not False
        return wanted and sys.stderr.isatty()

    def _run_name(self) -> str:
        return run_name(self._option("run_name"), self.config_file, self._option("ckpt_path"))

    def _option(self, key: str) -> Any:
        return self.config[self.verb].get(key)


def _require_whole_model(strategy: Any) -> None:
    """Raise a UserError for a strategy that cuts a model into pieces: adapters are too small to gain by it."""
    name = str(strategy if isinstance(strategy, str) else getattr(strategy, "class_path", type(strategy).__name__))
    if re.search("fsdp|deepspeed|model_?parallel", name, re.IGNORECASE):
        raise UserError(
            f"trainer.strategy: {name} shards a model over devices; lora_pl checkpoints the adapters of a whole one: "
            "take ddp, one copy of the frozen encoder on each device"
        )


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _task_name(data: SentenceDataModule) -> str:
    return data.task.name


def _pairs(data: SentenceDataModule) -> bool:
    return len(data.text_columns) > 1


def _label_names(data: SentenceDataModule) -> list[str]:
    return data.label_names


def quiet_libraries() -> None:
    """Keep to what concerns the run: no advertisements, no advice on what is done on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "does not have many workers",
        "DistributedSampler",  # ours repeats no sentence
        "LeafSpec",
        "sys.argv",
        "is not empty",
        "sync_dist=True",  # metrics are torchmetrics', exact over processes
        "your dataloader is not resumable",  # the run is: ExactResume
        "callbacks used to create the checkpoint",
    ):
        warnings.filterwarnings("ignore", f".*{message}.*")
