"""fit, validate and test, by LightningCLI."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lora_pl.callbacks.error_list import ErrorList
from lora_pl.callbacks.evaluation_report import EvaluationReport
from lora_pl.callbacks.progress_bar import ProgressBar
from lora_pl.cli.parser import Parser
from lora_pl.cli.shared_options import (
    OF_TRAINING,
    STORED,
    early_value,
    ignore_options_of_fit,
    link_model_and_data,
    option_value,
    refuse_options_of_fit,
    require_checkpoint,
    require_seed,
    take_defaults,
    with_checkpoint,
)
from lora_pl.cli.type_errors import in_one_line
from lora_pl.cli.verbs import described
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.errors import UsageError, UserError
from lora_pl.lora import LoRAConfig
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.model.stored import read_model
from lora_pl.training.resume.same_run import checkpoint_to_resume
from lora_pl.training.run import Run
from lora_pl.training.run_config import CONFIG
from lora_pl.training.run_folder import CHECKPOINTS, require_name, run_name
from lora_pl.training.run_lock import run_lock
from lora_pl.training.run_options import OPTIONS
from lora_pl.training.trainer import TRAINER_DEFAULTS, as_list, ignore_advice, make_trainer, own_bar, settled, shows_bar

SKIPPED = {"model", "datamodule", "weights_only"}
SKIPPED_ARGUMENTS = {
    "fit": {*SKIPPED, "train_dataloaders", "val_dataloaders"},
    "validate": {*SKIPPED, "dataloaders", "verbose"},
    "test": {*SKIPPED, "dataloaders", "verbose"},
}

MEASURES = "accelerator|strategy|devices|num_nodes|precision|enable_progress_bar|callbacks|profiler|plugins"
UNUSED = {
    "validate": rf"{OF_TRAINING}|data\.test_file|trainer\.(?!({MEASURES}|limit_val_batches)$).+",
    "test": rf"{OF_TRAINING}|trainer\.(?!({MEASURES}|limit_test_batches)$).+",
    "ablate": "run_name|resume|force",
}
"""Options that a verb reads, as a run's own configuration has them, and does not use."""


class TrainerParser(Parser, LightningArgumentParser):
    """`Parser` with the methods of Lightning's."""


def run(args: list[str]) -> None:
    """Run one of the three verbs, `args[0]`."""
    quiet_libraries()
    ClassifierCLI(args)


class ClassifierCLI(LightningCLI):
    """LightningCLI for one verb at a time, with the project's defaults, callbacks and folders.

    Options come from the flags, else from `--config`, else from the checkpoint of `--ckpt_path`, else from the
    defaults in the signatures.
    """

    def __init__(self, args: list[str], name: str | None = None) -> None:
        self.verb, self.name = args[0], name or args[0]
        with ExitStack() as self._held:  # the lock of a run that is resumed, from before its checkpoint is chosen
            super().__init__(
                LoRAClassifier,
                SentenceDataModule,
                save_config_callback=None,
                trainer_defaults=TRAINER_DEFAULTS,
                seed_everything_default=0,
                parser_class=TrainerParser,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                args=args,
            )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The given verb alone: the others need no parser."""
        return {self.verb: SKIPPED_ARGUMENTS[self.verb]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The project's own options, and those that model and data share."""
        link_model_and_data(parser)
        if self.verb == "fit":
            add = parser.add_argument
            add("--run_name", type=str | None, help="Names the run's folders; by default configuration and time.")
            add("--resume", action="store_true", help="Start the run, or resume it from its newest checkpoint.")
            add("--force", action="store_true", help="Resume although options differ from the saved run.")
            add("--save_every_steps", type=int | None, help="Optimizer steps between checkpoints.")
            add("--save_every_minutes", type=float | None, default=10, help="Minutes between checkpoints.")
            add("--early_stopping_patience", type=int | None, help="Validations without a new best that end the run.")
        else:
            ignore_options_of_fit(parser)
            add = parser.add_argument
            add("--metrics", type=str | None, help="A JSON file for the metrics, every class's too.")
            add("--errors", type=str | None, help="Where to list misclassified texts: JSON lines, CSV or Parquet.")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the flags over the checkpoint's own settings."""
        given = [str(arg) for arg in args]  # type: ignore[union-attr]
        of_verb = cast(Parser, self._subcommand_parsers[self.verb])
        of_verb.prog, of_verb.description = f"lora_pl {self.name}", described(self.name)
        of_verb.unused = UNUSED.get(self.name, "")
        of_verb.stored = STORED if self.verb != "fit" else ""
        if self.verb != "fit":
            refuse_options_of_fit(given)
        self.config_file = option_value(given, "--config", "-c")
        # from flags only: a saved configuration must not force the next run
        self.resumes, self.forced = self.verb == "fit" and "--resume" in given, "--force" in given
        given = self._resumed(of_verb, given) if self.resumes else with_checkpoint(of_verb, given)
        self.config = parser.parse_args(self._with_saved_configuration(given))
        require_seed(self._option("seed_everything"))
        if self.verb != "fit":
            require_checkpoint(self._option("ckpt_path"))

    def _resumed(self, parser: Parser, given: list[str]) -> list[str]:
        name = early_value(given, "run_name")
        if option_value(given, "--ckpt_path"):
            raise UsageError("resume", "expected --resume or --ckpt_path, got both")
        if name is None:
            raise UsageError("resume", "expected --run_name NAME beside --resume, got none")
        require_name(name)
        self._held.enter_context(run_lock(CHECKPOINTS / name))
        checkpoint = checkpoint_to_resume(CHECKPOINTS / name)
        if checkpoint is None:
            return given
        # a resumed run has its whole configuration: in the command, or saved beside its checkpoint
        if checkpoint.with_name(CONFIG).is_file():
            read_model(checkpoint)
        else:
            take_defaults(parser, checkpoint, given)
        return [*given, "--ckpt_path", str(checkpoint)]

    def _with_saved_configuration(self, given: list[str]) -> list[str]:
        """A run that is resumed without `--config` uses the configuration beside its checkpoint."""
        checkpoint = option_value(given, "--ckpt_path")
        if self.verb != "fit" or self.config_file or not checkpoint:
            return given
        saved = Path(checkpoint).with_name(CONFIG)
        return [self.verb, "--config", str(saved), *given[1:]] if saved.is_file() else given

    def _parse_ckpt_path(self) -> None:
        """Done in `parse_arguments`, where flags override the checkpoint; in LightningCLI they don't."""

    def before_instantiate_classes(self) -> None:
        """Choose the precision, and for `fit` take what it saves; a checkpoint's model starts from nothing else."""
        trainer = self._option("trainer")
        trainer.precision = settled({**trainer})["precision"]
        if self.verb == "fit":
            # every option, with its value
            self.saved = json.loads(
                self._parser(self.verb).dump(self.config[self.verb], format="json", skip_unset=False)
            )
            self.saved["model"]["lora"] = LoRAConfig.of(self.saved["model"]["lora"]).to_dict()  # as checkpoints say it
        if self._option("ckpt_path"):
            self._option("model").start_from = None

    def instantiate_classes(self) -> None:
        """Make model, data and trainer.

        Raises:
            UsageError: `usage`: a class that the configuration names can't be made.
        """
        try:
            super().instantiate_classes()
        except UserError:
            raise
        except ValueError as error:
            if "class_path" not in str(error):
                raise
            raise UsageError("usage", in_one_line(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """The trainer of `validate` and `test`; `fit` has a `Run` instead."""
        if self.verb == "fit":
            return self._run()
        options = self._trainer_options()
        shows = shows_bar(options)
        report = EvaluationReport(self._option("metrics"))
        errors = [ErrorList(path, self.datamodule)] if (path := self._option("errors")) is not None else []
        bars = [ProgressBar()] if shows and not own_bar(options) else []
        callbacks = [*as_list(options["callbacks"]), report, *errors, *bars]
        return make_trainer({**options, "logger": False, "callbacks": callbacks, "enable_progress_bar": shows})

    def fit(self, model: LightningModule, datamodule: SentenceDataModule, **kwargs: Any) -> None:
        """Let the `Run` train."""
        cast(Run, self.trainer).fit(model, datamodule, **self._trainer_options())

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Without Lightning's table, as `EvaluationReport` prints the metrics."""
        return {**super()._prepare_subcommand_kwargs(subcommand), "verbose": False}

    def _run(self) -> Run:
        name = run_name(self._option("run_name"), self.config_file, self._option("ckpt_path"))
        settings = {key: self._option(key) for key in ("ckpt_path", *OPTIONS)}
        resumes = self.resumes and bool(settings["ckpt_path"])  # else parsing found nothing to resume
        return Run(name, resumes, self.forced, **settings, config=self.saved)

    def _trainer_options(self) -> dict[str, Any]:
        return {**self._get(self.config_init, "trainer")}

    def _option(self, key: str) -> Any:
        return self.config[self.verb].get(key)


def quiet_libraries() -> None:
    """Silence Lightning's advertisements and its advice about what is done on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    ignore_advice()
