"""`lora_pl ablate`: a grid of ranks, seeds and more as one study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse.typing import PositiveInt
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lora_pl.ablation.grid import AlphaRule, Grid, Trial
from lora_pl.ablation.joint import require_packed, require_shared_base
from lora_pl.ablation.ray_launcher import RayLauncher
from lora_pl.ablation.report import write_report
from lora_pl.ablation.study import auto_size, check_study, one_after_another, run_study, stored_settings, units_of
from lora_pl.ablation.trial_runner import TrialRunner
from lora_pl.cli.params import counts_at_rank
from lora_pl.cli.parser import Parser
from lora_pl.cli.trainer import SKIPPED_ARGUMENTS, ClassifierCLI, quiet_libraries
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.encoder.biases_and_norms import trains_biases_or_norms
from lora_pl.encoder.loading import load_config
from lora_pl.errors import UsageError, UserError
from lora_pl.lora import LoRAConfig
from lora_pl.model.base import Base
from lora_pl.model.classifier import read_start
from lora_pl.reporting import say
from lora_pl.storage.flat import flatten
from lora_pl.storage.write_whole import write_whole
from lora_pl.training.resume.same_run import HARMLESS
from lora_pl.training.resume.stop_signals import RunStopped
from lora_pl.training.run_config import CONFIG
from lora_pl.training.run_folder import LOGS
from lora_pl.training.run_lock import run_lock

GRID = ("ranks", "seeds", "learning_rates", "alpha_rules", "targets", "head_rate", "full_rate", "reference_seeds")
OWN = (*GRID, "data_seed", "pack", "launcher", "workers", "output")
NOT_FITS = ("run_name", "ckpt_path", "seed_everything", "config", "resume", "force")
AXES = ("model.method", "model.learning_rate", "model.lora.r", "model.lora.lora_alpha", "model.lora.target_modules")
"""Settings of `fit` that differ between trials."""


def run(args: list[str]) -> None:
    """Run `lora_pl ablate ARGS`, or `lora_pl ablate report DIR`."""
    quiet_libraries()
    if args[1:2] == ["report"]:
        parser = Parser(prog="lora_pl ablate report", description="Write the report of a study again.")
        parser.add_argument("folder", type=str, help="The study's folder, with its table.parquet.")
        say(f"report {write_report(Path(parser.parse_args(args[2:]).folder))}")
    else:
        AblateCLI(["fit", *args[1:]])


class AblateCLI(ClassifierCLI):
    """The options of `fit` and those of the grid; each trial is a run of `fit`."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(args, {"fit": {"description": __doc__}})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The axes of the grid, and how the study runs."""
        super().add_arguments_to_parser(parser)
        add = parser.add_argument_group("The grid, and how it runs").add_argument
        add("--ranks", type=int, nargs="+", default=[1, 2, 4, 8], help="Ranks of the update.")
        add("--seeds", type=int, default=5, help="How many random seeds: 0, 1, 2, ...")
        add("--learning_rates", type=float, nargs="+", help="By default model.learning_rate alone.")
        add("--alpha_rules", type=AlphaRule, nargs="+", default=["fixed"],
            help="fixed (model.lora.lora_alpha at every rank), proportional (the scale of model.lora at every rank), "
            "rslora (a scale of alpha / sqrt(r)).")  # fmt: skip
        add("--targets", type=str, nargs="+",
            help="Sets of modules, each joined by commas; by default model.lora.target_modules alone.")  # fmt: skip
        add("--head_rate", type=float | None, help="Also train the head alone, at this learning rate.")
        add("--full_rate", type=float | None, help="Also train the whole encoder, at this learning rate.")
        add("--reference_seeds", type=PositiveInt | None, help="Seeds of those two; by default all.")
        add("--data_seed", type=int | None, help="Seeds every trial's data; by default each trial's own seed does.")
        add("--pack", type=Literal["auto"] | PositiveInt, default=1,
            help="How many LoRA trials to train jointly, in one forward pass; auto: up to 4, with some left for every "
            "worker, and 1 where batches are padded.")  # fmt: skip
        add("--launcher", type=Literal["local", "ray"], default="local",
            help="local: one after another in this process; ray: in several worker processes.")  # fmt: skip
        add("--workers", type=PositiveInt, default=2, help="Trials, or groups of joint trials, that Ray runs at once.")
        add("--output", type=str | None, help="The study's folder; by default logs/ablation/NAME of the configuration.")
        parser.set_defaults({"trainer.devices": 1})

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Those of `fit`, without a checkpoint: a study resumes by itself."""
        return {"fit": SKIPPED_ARGUMENTS["fit"] | {"ckpt_path"}}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse as `fit` does, under the verb's own name."""
        self._subcommand_parsers["fit"].prog = "lora_pl ablate"
        if "--resume" in args or "--force" in args:  # type: ignore[operator]
            raise UsageError("resume", "rerun the same command to resume a study; leave out --resume and --force")
        super().parse_arguments(parser, args)
        if self._option("run_name"):
            raise UsageError("run_name", "trials are named by their settings; --output names the study's folder")

    def instantiate_classes(self) -> None:
        """Nothing yet: each trial has its own objects."""

    def _run_subcommand(self, subcommand: str) -> None:
        config = self.config[subcommand]
        _require_one_device(config.trainer.devices)
        grid = _grid(config)
        _check_ranks(config, grid)
        folder = Path(config.output or LOGS / "ablation" / Path(self.config_file or "grid.yaml").stem)
        with run_lock(folder, "output"):
            self._run_grid(grid, folder)

    def _run_grid(self, grid: Grid, folder: Path) -> None:
        config, trials = self.config["fit"], grid.trials()
        check_study(folder, self._settings())
        shared = self._of_fit()
        text = yaml.safe_dump(shared, sort_keys=False)
        write_whole(folder / CONFIG, lambda beside: beside.write_text(text, encoding="utf-8"))
        say(f"{len(trials)} trials into {folder}")
        runner = TrialRunner(shared, (folder / "trials").resolve(), config.data_seed)
        data = runner.data(config.data_seed or 0)
        _check_start(shared["model"], data, trials)
        size = self._joint_trials(folder, trials, data)
        # read and tokenize once, report the data, and fail here if they are at fault
        data.prepare_data()
        data.setup("fit")
        launch = RayLauncher(config.workers) if config.launcher == "ray" else one_after_another
        try:
            failed = run_study(folder, units_of(trials, size), {**self._settings(), "pack": size}, runner, launch)
        except RunStopped as stop:
            raise RunStopped(stop.exit_code - 128, f"rerun the same command to resume {folder}") from stop
        try:
            say(f"report {write_report(folder)}")
        except UserError as error:  # the table is there
            say(str(error))
        if failed:
            some = ", ".join(failed[:5]) + (", ..." if failed[5:] else "")
            raise UserError(
                "ablate.failed",
                f"{len(failed)} of {len(trials)} trials failed: {some}; {folder / 'table.csv'} says why; rerun "
                "the same command to try them again",
            )

    def _joint_trials(self, folder: Path, trials: list[Trial], data: SentenceDataModule) -> int:
        """How many to train jointly: as given; a study that is resumed without a number keeps its own."""
        config = self.config["fit"]
        size, stored = config.pack, (stored_settings(folder) or {}).get("pack")
        if stored and size in (1, "auto"):
            return int(stored)
        if size == "auto":
            workers = config.workers if config.launcher == "ray" else 1
            joins = data.batching == "packed" and not trains_biases_or_norms(config.model)
            size = auto_size(trials, workers) if joins else 1
        if size > 1:
            require_packed(data)
            require_shared_base(config.model)
        return int(size)

    def _of_fit(self) -> dict[str, Any]:
        """The configuration that every trial's `fit` starts from."""
        return {key: value for key, value in self.saved.items() if key not in (*OWN, *NOT_FITS)}

    def _settings(self) -> dict[str, Any]:
        """What all trials of the study share, by full key."""
        shared = {**flatten(self._of_fit()), "data_seed": self.config["fit"].data_seed}
        return {key: value for key, value in shared.items() if key not in AXES and not HARMLESS.fullmatch(key)}


def _grid(config: Any) -> Grid:
    lora = LoRAConfig.of(config.model.lora.as_dict())
    references = {"head": config.head_rate, "full": config.full_rate}
    return Grid(
        ranks=config.ranks,
        seeds=range(config.seeds),
        learning_rates=config.learning_rates or [config.model.learning_rate],
        alpha_rules=config.alpha_rules,
        targets=[tuple(names.split(",")) for names in config.targets]
        if config.targets
        else [tuple(lora.target_modules)],
        base=lora,
        references={method: rate for method, rate in references.items() if rate is not None},  # type: ignore[misc]
        reference_seeds=config.reference_seeds,
    )


def _require_one_device(devices: Any) -> None:
    if devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1):
        raise UserError("trainer.devices", f"a trial runs on one device, got {devices}; for several use --launcher ray")


def _check_ranks(config: Any, grid: Grid) -> None:
    """Fail before the first trial where some trial would: at a target that matches nothing, or too high a rank."""
    encoder, model = load_config(config.model.encoder), config.model
    for targets in grid.targets:
        for rank in grid.ranks:
            lora = replace(grid.base, r=rank, target_modules=targets)
            counts_at_rank(encoder, lora, model.head, 2, model.train_biases, model.train_norms)


def _check_start(model: Mapping[str, Any], data: SentenceDataModule, trials: Sequence[Trial]) -> None:
    """Fail before the first trial where some trial can't start from the study's `model.start_from`."""
    if model["start_from"] is None:
        return
    start = read_start(model["start_from"], Base.load(model["encoder"]))
    of_data = {"task": data.task.name, "label_names": data.label_names, "pairs": data.pairs}
    for trial in trials:
        start.tensors({**trial.settings(model), **of_data})
