"""`lora_pl ablate`: alternatives, axes and seeds as one study, with a table and a report."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from jsonargparse.typing import PositiveInt
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lora_pl.ablation.grid import Grid, Trial, scales_loss
from lora_pl.ablation.groups import apart
from lora_pl.ablation.joint_data import require_packed
from lora_pl.ablation.ray_launcher import RayLauncher
from lora_pl.ablation.report import write_report
from lora_pl.ablation.study import (
    AXES,
    PACK,
    auto_size,
    check_study,
    one_after_another,
    run_study,
    stored_settings,
    units_of,
)
from lora_pl.ablation.trial_runner import TrialRunner
from lora_pl.cli.params import counts_at_rank
from lora_pl.cli.parser import Parser
from lora_pl.cli.shared_options import early_value, option_value
from lora_pl.cli.study_options import SHORT_NAMES, StudyOptions, joined_vary
from lora_pl.cli.trainer import SKIPPED_ARGUMENTS, ClassifierCLI, quiet_libraries
from lora_pl.encoder.loading import load_config
from lora_pl.errors import UsageError, UserError
from lora_pl.lora import LoRAConfig
from lora_pl.model.base import Base
from lora_pl.model.monitor import reported, require_monitor
from lora_pl.model.start import read_start
from lora_pl.model.training_loss import TrainingLoss
from lora_pl.printable import first_of
from lora_pl.reporting import say, silence
from lora_pl.storage.flat import flatten, with_options
from lora_pl.storage.paths import expanded
from lora_pl.storage.write_whole import write_text_whole
from lora_pl.storage.yaml_file import read_options
from lora_pl.training.resume.same_run import HARMLESS
from lora_pl.training.resume.stop_signals import RunStopped
from lora_pl.training.run_config import CONFIG
from lora_pl.training.run_folder import LOGS
from lora_pl.training.run_lock import run_lock
from lora_pl.training.run_options import OPTIONS


def run(args: list[str]) -> None:
    """Run `lora_pl ablate ARGS`, or `lora_pl ablate report DIR`."""
    quiet_libraries()
    if args[1:2] == ["report"]:
        parser = Parser(prog="lora_pl ablate report", description="Write the report of a study again.")
        parser.add_argument("folder", type=str, help="The study's folder, with its table.parquet.")
        parser.add_argument("--against", type=str, help="A row of the report: compare each other row with it alone.")
        given = parser.parse_args(args[2:])
        say(f"report {write_report(expanded(given.folder), given.against)}")
    else:
        AblateCLI(["fit", *args[1:]])


class AblateCLI(ClassifierCLI):
    """The options of `fit` and those of the grid; each trial is a run of `fit`."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(args, name="ablate")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The axes of the grid, and how the study runs."""
        super().add_arguments_to_parser(parser)
        add = parser.add_argument_group("The grid, and how it runs").add_argument
        add("--vary", type=dict[str, Any], default={},
            help="OPTION VALUE ...: an axis, any option of fit with its values; may be given again.")  # fmt: skip
        for name, axis in SHORT_NAMES.items():
            add(f"--{name}", type=axis.type, nargs="+", help=axis.help)
        add("--task_config", type=str | None,
            help="Configurations by task, say configs/glue/{task}.yaml; the options given override them.")  # fmt: skip
        add("--arms", type=dict[str, Any], default={},
            help="In a configuration: alternatives by name, each with its options (config: a file of them, vary: axes "
            "of its own).")  # fmt: skip
        add("--head_rate", type=float, nargs="+", help="Also train the head alone, at these learning rates.")
        add("--full_rate", type=float, nargs="+", help="Also train the whole encoder, at these learning rates.")
        add("--reference_seeds", type=PositiveInt | None, help="Seeds of those two; by default all.")
        add("--seeds", type=int, default=5, help="How many random seeds: 0, 1, 2, ...")
        add("--data_seed", type=int | None, help="Seeds every trial's data; by default each trial's own seed does.")
        add("--pack", type=Literal["auto"] | PositiveInt, default=1,
            help="How many LoRA trials to train jointly, in one forward pass; auto: up to 4, with some left for every "
            "worker, and 1 where batches are padded.")  # fmt: skip
        add("--launcher", type=Literal["local", "ray"], default="local",
            help="local: one after another in this process; ray: in several worker processes.")  # fmt: skip
        add("--workers", type=PositiveInt, default=2, help="Trials, or groups of joint trials, that Ray runs at once.")
        add("--output", type=str | None, help="The study's folder; by default logs/ablation/NAME of the configuration.")
        parser.add_argument("--ckpt_path", type=Any, help=SUPPRESS)  # null in the configuration that a run saved
        parser.set_defaults({"trainer.devices": 1})

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Those of `fit`, without a checkpoint: a study resumes by itself."""
        return {"fit": SKIPPED_ARGUMENTS["fit"] | {"ckpt_path"}}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse as `fit` does, under the verb's own name."""
        if "--resume" in args or "--force" in args:  # type: ignore[operator]
            raise UsageError("resume", "rerun the same command to resume a study; leave out --resume and --force")
        given = joined_vary([str(arg) for arg in args])  # type: ignore[union-attr]
        if early_value(given, "ckpt_path"):
            raise UsageError("ckpt_path", "trials start anew, or all from --model.start_from; leave ckpt_path out")
        if option_value(given, "--run_name"):
            raise UsageError("run_name", "trials are named by their settings; --output names the study's folder")
        super().parse_arguments(parser, given)
        self.given = {arg[2:].partition("=")[0] for arg in given if arg.startswith("--")}
        files = cast(Parser, self._parser("fit")).files().values()
        self.given |= {key for path in files for key in flatten(read_options(path))}

    def instantiate_classes(self) -> None:
        """Nothing yet: each trial has its own objects."""

    def _run_subcommand(self, subcommand: str) -> None:
        config = self.config[subcommand]
        devices = config.trainer.devices
        if devices not in (1, "1", "auto") and not (isinstance(devices, list) and len(devices) == 1):
            said = f"a trial runs on one device, got {devices}; for several use --launcher ray"
            raise UserError("trainer.devices", said)
        trials = self._trials()
        folder = expanded(config.output or LOGS / "ablation" / Path(self.config_file or "grid.yaml").stem)
        with run_lock(folder, "output"):
            self._run_trials(trials, folder)

    def _trials(self) -> list[Trial]:
        config, shared = self.config["fit"], flatten(self._of_fit())
        read = StudyOptions(cast(Parser, self._parser("fit")), config, self.given)
        axes, arms = read.axes(), read.arms(shared["model.method"])
        return Grid(shared, arms, axes, config.seeds, cache(read.of_task)).trials()

    def _run_trials(self, trials: list[Trial], folder: Path) -> None:
        config, shared = self.config["fit"], self._of_fit()
        settings = self._settings(trials)
        check_study(folder, settings)
        write_text_whole(folder / CONFIG, yaml.safe_dump(shared, sort_keys=False))
        say(f"{len(trials)} trials into {folder}")
        runner = TrialRunner(shared, (folder / "trials").resolve(), config.data_seed)
        _check_models(shared, trials)
        size = self._joint_trials(folder, trials, runner)
        _prepare(runner, trials)
        launch = RayLauncher(config.workers) if config.launcher == "ray" else one_after_another
        try:
            failed = run_study(folder, units_of(trials, size), {**settings, PACK: size}, runner, launch)
        except RunStopped as stop:
            raise RunStopped(stop.exit_code - 128, f"rerun the same command to resume {folder}") from stop
        runner.remove_groups()
        try:
            say(f"report {write_report(folder)}")
        except UserError as error:  # the table is there
            say(str(error))
        if failed:
            raise UserError(
                "ablate.failed",
                f"{len(failed)} of {len(trials)} trials failed: {first_of(failed, 5)}; {folder / 'table.csv'} says "
                "why; rerun the same command to try them again",
            )

    def _joint_trials(self, folder: Path, trials: list[Trial], runner: TrialRunner) -> int:
        """How many to train jointly: as given; a study that is resumed without a number keeps its own."""
        config = self.config["fit"]
        size, stored = config.pack, (stored_settings(folder) or {}).get(PACK)
        shared = flatten(self._of_fit())
        if size != 1 and any(scales_loss({**shared, **trial.options}) for trial in trials):
            say("in 16-mixed trials run one by one: joint ones would share a scale of the loss; take bf16-mixed")
        if stored and ("pack" not in self.given or size == "auto"):
            return int(stored)
        if size == "auto":
            workers = config.workers if config.launcher == "ray" else 1
            size = auto_size(trials, workers) if runner.data(trials[0]).batching == "packed" else 1
        if size > 1:
            require_packed(runner.data(trials[0]))
        return int(size)

    def _of_fit(self) -> dict[str, Any]:
        """The configuration that every trial's `fit` starts from."""
        shared = {key: value for key, value in self.saved.items() if key in ("trainer", "model", "data", *OPTIONS)}
        return with_options(shared, {"trainer.devices": 1} if shared["trainer"]["devices"] == "auto" else {})

    def _settings(self, trials: Sequence[Trial]) -> dict[str, Any]:
        """What the trials of the study start from, by full key, and the axes of each arm."""
        shared = {**flatten(self._of_fit()), "data_seed": self.config["fit"].data_seed}
        axes = {f"{AXES}{trial.arm}": sorted(trial.axes) for trial in trials}
        return {key: value for key, value in shared.items() if not HARMLESS.fullmatch(key)} | axes


def _check_models(shared: Mapping[str, Any], trials: Sequence[Trial]) -> None:
    """Fail before the first trial where some trial would: at a target that matches nothing, or too high a rank."""

    def counted(trial: Trial) -> list[Any]:
        model = trial.model(shared["model"])
        return [model[key] for key in ("encoder", "lora", "head", "train_biases", "train_norms")]

    adapted = [trial for trial in trials if trial.method == "lora"]
    for alike in apart(adapted, lambda trial: repr(counted(trial))):
        encoder, lora, head, *in_place = counted(alike[0])
        counts_at_rank(load_config(encoder), LoRAConfig.of(lora), head, 2, *in_place)


def _prepare(runner: TrialRunner, trials: Sequence[Trial]) -> None:
    """Read, tokenize and report the data of every kind of trial once; fail here if they, or a start, are at fault."""
    start_of = cache(lambda path, encoder: read_start(path, Base.load(encoder)))
    for alike in apart(trials, runner.kind_of_data):
        data = runner.data(alike[0])
        data.prepare_data()
        data.setup("fit")
        of_data = {"task": data.task.name, "label_names": data.label_names, "pairs": data.pairs}
        task = data.task.customized(data.label_names, data.pairs)
        for trial in alike:
            model = trial.model(runner.config["model"])
            require_monitor(model["monitor"], reported(task, len(data.validation_splits)))
            with silence():
                TrainingLoss(task, model).take_weights(data)
            if model["start_from"] is not None:
                start_of(model["start_from"], model["encoder"]).tensors({**model, **of_data})
