"""A `lightning.Trainer` with the project's defaults."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    LearningRateFinder,
    ModelPruning,
    ProgressBar,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins import Precision

from lora_pl.errors import UserError, first_line
from lora_pl.model.precision import chosen_precision
from lora_pl.storage.checkpoint_io import WholeFileCheckpointIO
from lora_pl.storage.flat import primitive

TRAINER_DEFAULTS = {"max_epochs": 3, "enable_model_summary": False, "log_every_n_steps": 10}
ADVICE = (
    "does not have many workers",
    "DistributedSampler",  # ours repeats no sentence
    "LeafSpec",
    "sys.argv",
    "is not empty",
    "sync_dist=True",  # metrics are torchmetrics', exact over processes
    "your dataloader is not resumable",  # the run is: ExactResume
    "callbacks used to create the checkpoint",
    "smaller than the logging interval",  # the epoch's own points are logged
    "could not find the monitored key",  # a run without validation, which its closing line says
)
"""Parts of Lightning's warnings about things done on purpose."""
SHARDED = re.compile("fsdp|deepspeed|model_?parallel", re.IGNORECASE)
TUNES = (
    "would train with other settings than the run records, and the schedule would not follow them; compare some by "
    "lora_pl ablate --vary, and set the best"
)
OF_BASE = "frozen weights, which checkpoints leave out"
REFUSED: dict[type[Callback], str] = {
    LearningRateFinder: TUNES,
    BatchSizeFinder: TUNES,
    StochasticWeightAveraging: "averages after the last checkpoint is saved; leave it out",
    WeightAveraging: "saves its averages where nothing reads them; leave it out",
    BaseFinetuning: f"unfreezes {OF_BASE}; take --model.method full",
    ModelPruning: f"prunes {OF_BASE}; leave it out",
}
"""Lightning's callbacks whose runs would end with other models than their checkpoints hold."""


def settled(options: Mapping[str, Any]) -> dict[str, Any]:
    """The Trainer's options as `primitive` values, with the project's defaults and a precision.

    Raises:
        UserError: `trainer.strategy`, it shards the model over devices.
    """
    found = {name: primitive(value) for name, value in {**TRAINER_DEFAULTS, **options}.items()}
    strategy = found.get("strategy")
    name = strategy if isinstance(strategy, str) else getattr(strategy, "class_path", type(strategy).__name__)
    if SHARDED.search(name):
        raise UserError(
            "trainer.strategy",
            f"{name} shards the model over devices, but checkpoints need whole adapters; take ddp, with a copy of the "
            "frozen encoder on each device",
        )
    found["precision"] = chosen_precision(found.get("precision"), found.get("accelerator"))
    return found


def make_trainer(options: Mapping[str, Any]) -> Trainer:
    """A trainer of `settled` options, that writes a checkpoint as a whole or not at all.

    Raises:
        UserError: `trainer`, Lightning does not know an option or its value, or options contradict each other;
            `trainer.callbacks`, one of `REFUSED`; `trainer.plugins`, a precision.
    """
    for callback in as_list(options.get("callbacks")):
        for kind, why in REFUSED.items():
            if isinstance(callback, kind):
                raise UserError("trainer.callbacks", f"{type(callback).__name__} {why}")
    plugins = [*as_list(options.get("plugins")), WholeFileCheckpointIO()]
    for plugin in plugins:
        if isinstance(plugin, Precision):
            raise UserError("trainer.plugins", f"expected no {type(plugin).__name__}; trainer.precision sets it")
    try:
        return Trainer(**{**options, "plugins": plugins})
    except (ValueError, TypeError, MisconfigurationException) as error:  # an unknown accelerator, strategy, ...
        raise UserError("trainer", first_line(error)) from error


def shows_bar(options: Mapping[str, Any]) -> bool:
    """Whether a progress bar is enabled, and is the user's, or standard output and standard error are terminals."""
    on_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    return options.get("enable_progress_bar") is not False and (own_bar(options) or on_terminal)


def own_bar(options: Mapping[str, Any]) -> bool:
    """Whether the callbacks in the options have a progress bar, which replaces ours."""
    return any(isinstance(callback, ProgressBar) for callback in as_list(options.get("callbacks")))


def ignore_advice() -> None:
    """Filter the warnings of `ADVICE`."""
    for message in ADVICE:
        warnings.filterwarnings("ignore", f".*{message}.*")


def as_list(value: Any) -> list[Any]:
    """None, one value or several, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
