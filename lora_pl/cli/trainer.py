"""fit, validate, test and predict, by LightningCLI."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from lora_pl.callbacks.epoch_lines import EpochLines
from lora_pl.callbacks.hparams_record import HparamsRecord
from lora_pl.callbacks.parameter_report import ParameterReport
from lora_pl.callbacks.precision_report import PrecisionReport
from lora_pl.callbacks.prediction_writer import STDOUT, PredictionWriter
from lora_pl.callbacks.progress_bar import ProgressBar
from lora_pl.callbacks.run_checkpoints import BestCheckpoint, LastCheckpoint
from lora_pl.callbacks.run_summary import RunSummary
from lora_pl.callbacks.throughput import Throughput
from lora_pl.checkpoint import WholeFileCheckpointIO
from lora_pl.classifier import LoRAClassifier
from lora_pl.cli.checkpoint_defaults import checkpoint_defaults, option_value
from lora_pl.cli.parser import Parser
from lora_pl.cli.run_folder import CHECKPOINTS, LOGS, run_name
from lora_pl.data.datamodule import GlueDataModule
from lora_pl.data.texts import STDIN, TextStream
from lora_pl.errors import UsageError, UserError
from lora_pl.files import write_whole
from lora_pl.precision import default_precision
from lora_pl.reporting import say

CONFIG = "config.yaml"
SKIPPED = {"model", "datamodule", "weights_only"}
SKIPPED_ARGUMENTS = {
    "fit": {*SKIPPED, "train_dataloaders", "val_dataloaders"},
    "validate": {*SKIPPED, "dataloaders", "verbose"},
    "test": {*SKIPPED, "dataloaders", "verbose"},
    "predict": {*SKIPPED, "dataloaders", "return_predictions"},
}
TRAINER_DEFAULTS = {"max_epochs": 3, "enable_model_summary": False, "log_every_n_steps": 10}


def run(args: list[str]) -> None:
    """Run one of the four verbs, `args[0]`."""
    _quiet_libraries()
    ClassifierCLI(args)


class ClassifierCLI(LightningCLI):
    """LightningCLI for one verb at a time, with the project's defaults, callbacks and folders.

    Values come from the flags, else from `--config`, else from the checkpoint of `--ckpt_path`, else from the typed
    defaults.
    """

    def __init__(self, args: list[str]) -> None:
        self.verb = args[0]
        super().__init__(
            LoRAClassifier,
            GlueDataModule,
            save_config_callback=RunConfig if self.verb == "fit" else None,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=Parser,
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
        if self.verb == "predict":
            parser.add_argument(
                "--input", default=STDIN, help="A text file, CSV, TSV, JSON lines or Parquet; - is stdin."
            )
            parser.add_argument("--output", default=STDOUT, help="JSON lines, or Parquet by its ending; - is stdout.")
            parser.set_defaults({"trainer.devices": 1})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the flags over the checkpoint's own settings."""
        given = [str(arg) for arg in args]  # type: ignore[union-attr]
        self.config_file = option_value(given, "--config", "-c")
        checkpoint = option_value(given, "--ckpt_path")
        if checkpoint is not None:
            self._subcommand_parsers[self.verb].set_defaults(checkpoint_defaults(checkpoint, given))
            given = self._with_saved_configuration(given, checkpoint)
        self.config = parser.parse_args(given)
        if self.verb != "fit" and not self._option("ckpt_path"):
            raise UsageError("ckpt_path: expected --ckpt_path checkpoints/NAME/best.ckpt, got none")

    def _with_saved_configuration(self, given: list[str], checkpoint: str) -> list[str]:
        """A run that is resumed without `--config` goes on with the configuration beside its checkpoint."""
        saved = Path(checkpoint).with_name(CONFIG)
        if self.verb != "fit" or self.config_file or not saved.is_file():
            return given
        return [self.verb, "--config", str(saved), *given[1:]]

    def _parse_ckpt_path(self) -> None:
        """Done in `parse_arguments`, where flags win; LightningCLI would let the checkpoint win."""

    def before_instantiate_classes(self) -> None:
        """Settle the precision."""
        trainer = self._option("trainer")
        if trainer.precision is None:
            trainer.precision = default_precision(str(trainer.accelerator))
            say(f"precision {trainer.precision}, what the device does well; --trainer.precision overrides it")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the project's callbacks, logger and way of writing checkpoints."""
        config = self._get(self.config_init, "trainer")
        name = self._run_name() if self.verb == "fit" else ""
        if self.verb != "fit":
            kwargs["logger"] = False
        elif config.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(LOGS, name=name, version="", default_hp_metric=False)
        callbacks = self._callbacks(name, logs=bool(kwargs.get("logger", config.logger)))
        kwargs["enable_progress_bar"] = self._shows_bar()
        kwargs["callbacks"] = [*_as_list(config.callbacks), *callbacks]
        kwargs["plugins"] = [*_as_list(config.plugins), WholeFileCheckpointIO()]
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError) as error:  # an unknown accelerator, strategy, ...
            raise UserError(f"trainer: {str(error).splitlines()[0]}") from error

    def predict(self, model: LightningModule, datamodule: GlueDataModule, **kwargs: Any) -> None:
        """Run instead of the trainer's `predict`: the texts come from `--input`."""
        stream = TextStream(self._option("input"), datamodule.text_columns)
        self.model.predict_batch_tokens = datamodule.eval_batch_tokens
        self.model.predict_batching = datamodule.batching
        # batch_size None: the stream's lists are the batches
        self.trainer.predict(model, DataLoader(stream, batch_size=None), return_predictions=False, **kwargs)

    def after_predict(self) -> None:
        """Say where the rows went."""
        if self._option("output") != STDOUT:
            say(f"{self.writer.written:,} predictions in {self._option('output')}")

    def _callbacks(self, name: str, logs: bool) -> list[Callback]:
        config = self._option("trainer")
        callbacks: list[Callback] = []
        if self._shows_bar():
            callbacks.append(ProgressBar())  # a rich bar would redraw itself over the summary
        elif self.verb == "fit":
            callbacks.append(EpochLines())
        if self.verb == "predict":
            self.writer = PredictionWriter(self._option("output"))
            callbacks.append(self.writer)
        if self.verb != "fit":
            return callbacks
        callbacks += [ParameterReport(), PrecisionReport(), Throughput(), RunSummary()]
        if logs:
            callbacks += [HparamsRecord(), LearningRateMonitor("step")]
        if config.enable_checkpointing is not False and not config.fast_dev_run:
            callbacks += [BestCheckpoint(CHECKPOINTS / name), LastCheckpoint(CHECKPOINTS / name)]
        return callbacks

    def _shows_bar(self) -> bool:
        """Where a terminal is there to redraw it, and predictions do not scroll through it."""
        wanted = self._option("trainer").enable_progress_bar is not False
        return wanted and sys.stderr.isatty() and self._option("output") != STDOUT

    def _run_name(self) -> str:
        return run_name(self._option("run_name"), self.config_file, self._option("ckpt_path"))

    def _option(self, key: str) -> Any:
        return self.config[self.verb].get(key)


class RunConfig(SaveConfigCallback):
    """Writes the run's whole configuration beside its checkpoints and into TensorBoard."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called once, by the first process."""
        text = self.parser.dump(self.config, skip_none=False)
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_text("config", f"```yaml\n{text}\n```")
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, BestCheckpoint):
                path = Path(str(checkpoint.dirpath)) / CONFIG
                write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _task_name(data: GlueDataModule) -> str:
    return data.task.name


def _pairs(data: GlueDataModule) -> bool:
    return len(data.text_columns) > 1


def _label_names(data: GlueDataModule) -> list[str]:
    return data.label_names


def _quiet_libraries() -> None:
    """Keep to what concerns the run: no advertisements, no advice on what is done on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "does not have many workers",
        "DistributedSampler",  # ours repeats no sentence
        "LeafSpec",
        "sys.argv",
        "is not empty",
        "callbacks used to create the checkpoint",
    ):
        warnings.filterwarnings("ignore", f".*{message}.*")
