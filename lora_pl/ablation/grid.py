"""The trials of a study: every arm at every combination of its axes, for every seed."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lora_pl.data.hub import PREFIX
from lora_pl.data.tasks import get_task, task_name
from lora_pl.encoder.biases_and_norms import trains_biases_or_norms
from lora_pl.errors import UserError
from lora_pl.lora import LoRAConfig
from lora_pl.lora.config import DIVISORS
from lora_pl.model.network import Method
from lora_pl.model.precision import full_name
from lora_pl.storage.flat import with_options

Options = Mapping[str, Any]
"""Options of `fit` by full name, say `model.lora.r`."""
AlphaRule = Literal["fixed", "proportional", "rslora"]
ALPHA_RULE, LORA, RANK = "alpha_rule", "model.lora.", "model.lora.r"
ARM_NAMES: dict[Method, str] = {"lora": "LoRA", "head": "head alone", "full": "full fine-tuning"}
"""The arms that need no name of the user's: the study's own method, and the references."""
WITHOUT_ADAPTERS = {"model.train_biases": "none", "model.train_norms": False}
"""What the references have of the options that go with adapters."""
OF_ONE = ("early_stopping_patience", "data.validation_share", "data.folds")
"""Options with which trials train alone: they end apart, or validate on sentences of their own seed."""
OWN_OF_JOINT = (
    *("model.learning_rate", "model.head_learning_rate", "model.weight_decay", "model.decay_bias"),
    *("model.class_weights", "model.label_smoothing"),
)
"""Beside those of LoRA, the options in which joint trials may differ."""
MONITOR = "model.monitor"
SHORT = {RANK: "r", "model.learning_rate": "lr", "model.lora.target_modules": "on-", ALPHA_RULE: "alpha-"}
LONGEST = 120  # of a trial's name: it names folders


@dataclass(frozen=True)
class Arm:
    """One of the alternatives that a study compares, with the options that make it."""

    name: str
    options: Options = field(default_factory=dict)
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Options that vary in this arm alone, with their values."""
    seeds: int | None = None
    """How many of the study's seeds train it; by default all."""


@dataclass(frozen=True)
class Trial:
    """One training run of a study."""

    arm: str
    seed: int
    axes: Options = field(default_factory=dict)
    """What varies within its arm."""
    options: Options = field(default_factory=dict)
    """Every option in which it may differ from the study's configuration, and the rule for alpha that made some."""
    alone: bool = False
    """Whether it can't be trained jointly with others."""

    @property
    def name(self) -> str:
        """The name of its folder and its TensorBoard run: arm, axes and seed."""
        axes = [f"{SHORT.get(key, key.rpartition('.')[2] + '-')}{told(value)}" for key, value in self.axes.items()]
        arm = [] if axes and self.arm == ARM_NAMES["lora"] else [self.arm]
        name = file_name([*arm, *axes])
        if len(name) > LONGEST:
            name = f"{name[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return f"{name}-s{self.seed}"

    @property
    def method(self) -> Method:
        """What it trains."""
        method: Method = self.options.get("model.method", "lora")
        return method

    def config(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration of its `fit`: the study's, `shared`, with its own options."""
        return with_options(shared, {key: value for key, value in self.options.items() if key != ALPHA_RULE})

    def model(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """Its settings of a `LoRAClassifier`: those of the study, `shared`, with its own."""
        own: dict[str, Any] = self.config({"model": shared})["model"]
        return own


@dataclass(frozen=True)
class Grid:
    """Arms, and the axes that all of them share.

    An arm leaves out an axis that it has a value for, and the axes of LoRA if it trains none.
    """

    shared: Options
    """The study's configuration."""
    arms: Sequence[Arm]
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seeds: int = 1
    of_task: Callable[[str], Options] = lambda task: {}
    """A task's own options, which arms and axes override."""

    def trials(self) -> list[Trial]:
        """All trials, seed by seed, so that a study that is stopped early compares all arms.

        Raises:
            UserError: `seeds`, there is none; `vary`, the grid is empty, two of its trials are equal, or trials of a
                task have different monitors.
        """
        _require("seeds", self.seeds >= 1, "at least one seed", self.seeds)
        found = [
            self._trial(arm, seed, axes)
            for seed, arm in itertools.product(range(self.seeds), self.arms)
            if arm.seeds is None or seed < arm.seeds
            for axes in self._points(arm)
        ]
        known: set[str] = set()
        _require("vary", bool(found), "at least one trial", "none")
        compared = {(trial.options.get("data.task"), {**self.shared, **trial.options}.get(MONITOR)) for trial in found}
        _require("vary", len(compared) == len(dict(compared)), f"one {MONITOR} for the trials of a task", "several")
        for trial in found:
            ways = {repr((trial.seed, sorted({**self.shared, **trial.options}.items()))), trial.name}
            _require("vary", not ways & known, "trials that differ in their options", _twice(trial))
            known |= ways
        return found

    def _trial(self, arm: Arm, seed: int, axes: Options) -> Trial:
        options = self._options(arm, axes)
        own = {**WITHOUT_ADAPTERS, **self.shared, **options}
        model = with_options({}, own)["model"]
        alone = (
            model["method"] != "lora"
            or own.get("model.lora.init") == "eva"  # from each trial's own data
            or trains_biases_or_norms(model)
            or any(own.get(name) is not None for name in OF_ONE)
            or scales_loss(own)
        )
        return Trial(arm.name, seed, axes, options, alone)

    def _points(self, arm: Arm) -> Iterator[Options]:
        adapted = self._method(arm.options) == "lora"
        axes = {key: values for key, values in self.axes.items() if key not in arm.options}
        axes = {key: values for key, values in axes.items() if adapted or not _of_lora(key)} | dict(arm.axes)
        for values in itertools.product(*axes.values()):
            yield dict(zip(axes, values, strict=True))

    def _options(self, arm: Arm, axes: Options) -> Options:
        own = {**arm.options, **axes}
        task = get_task(meant_task({**self.shared, **own}))
        before = {**self.of_task(task.name), **arm.options}
        options = {**before, **axes, "model.method": self._method(own)}
        if source := options.get("data.source") or self.shared.get("data.source"):
            options["data.source"] = source.replace("{folder}", task.folder)
        if options["model.method"] != "lora":
            return {key: value for key, value in options.items() if not _of_lora(key)} | WITHOUT_ADAPTERS
        return {**options, **_of_rule({**self.shared, **options}, {**self.shared, **before})}

    def _method(self, options: Options) -> Method:
        method: Method = options.get("model.method", self.shared.get("model.method", "lora"))
        return method


def meant_task(options: Options) -> str:
    """The task of trials with these options, which need not name it."""
    own = options.get("data.train_file") or str(options.get("data.source")).startswith(PREFIX)
    return task_name(options.get("data.task"), bool(own))


def lora_of(options: Options) -> LoRAConfig:
    """The configuration of LoRA among `options`."""
    return LoRAConfig.of({key.removeprefix(LORA): value for key, value in options.items() if key.startswith(LORA)})


def _of_rule(options: Options, before: Options) -> Options:
    """What the rule for alpha among a trial's `options` makes of them.

    fixed: nothing, so that a scale of alpha / r falls with r. proportional: at every rank the scale of `before`, those
    of study, task and arm without axes. rslora: a scale of alpha / sqrt(r) (Kalajdzievski, 2023).
    """
    rule: AlphaRule = options.get(ALPHA_RULE, "fixed")
    if rule == "proportional":
        lora = lora_of(options)
        return {"model.lora.lora_alpha": lora_of(before).scale * DIVISORS[lora.scaling](lora.r)}
    return {"model.lora.scaling": "rslora"} if rule == "rslora" else {}


def scales_loss(options: Options) -> bool:
    """Whether trials share a scale of the loss if they are trained jointly: one's overflow skips the step of all."""
    return full_name(options.get("trainer.precision")) == "16-mixed"


def jointly(trial: Trial) -> str:
    """What two trials must have in common to be trained jointly; a name of its own where nothing is trained so."""
    if trial.alone:
        return trial.name
    return repr(sorted((k, v) for k, v in trial.options.items() if not _of_lora(k) and k not in OWN_OF_JOINT))


def _twice(trial: Trial) -> str:
    """A trial that the grid has twice, and why, if axes of LoRA vary what trains none."""
    idle = [key for key in trial.axes if _of_lora(key) and trial.method != "lora"]
    why = (
        f": {' and '.join(idle)} can't vary method {trial.method}, which trains no adapters; give it by --head_rate or "
        "--full_rate instead, or as an arm without that axis"
    )
    return f"two like {trial.name}{why if idle else ''}"


def told(value: Any) -> str:
    """A value of an axis in a name, a table or a text: `4`, `0.001`, `query,value`."""
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(told, value)) if isinstance(value, list | tuple) else str(value)


def file_name(parts: Sequence[str]) -> str:
    """The parts joined by hyphens, what may not be in a file's name replaced."""
    return re.sub(r"[^\w+.-]", "_", "-".join(parts))


def _of_lora(key: str) -> bool:
    return key.startswith(LORA) or key == ALPHA_RULE


def _require(axis: str, holds: bool, expected: str, given: object) -> None:
    if not holds:
        raise UserError(axis, f"expected {expected}, got {given}")
