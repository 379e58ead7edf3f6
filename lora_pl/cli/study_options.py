"""The arms and axes of a study, from the options of `ablate` and its files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

from jsonargparse import Namespace

from lora_pl.ablation.grid import ALPHA_RULE, ARM_NAMES, RANK, AlphaRule, Arm, Options
from lora_pl.cli.parser import Parser
from lora_pl.cli.shared_options import LINKED
from lora_pl.errors import UsageError
from lora_pl.model.network import Method
from lora_pl.storage.flat import with_options
from lora_pl.storage.yaml_file import read_options
from lora_pl.training.run_options import OPTIONS


class ShortName(NamedTuple):
    """An option of `ablate` that is an axis."""

    key: str
    """The option of `fit`, or the rule for alpha."""
    type: Any
    """A value's."""
    help: str


SHORT_NAMES = {
    "ranks": ShortName(RANK, int | None, "Axis model.lora.r; 1 2 4 8 if nothing else is compared."),
    "targets": ShortName(
        "model.lora.target_modules",
        str,
        "Axis model.lora.target_modules: roles, or sets of names joined by commas.",
    ),
    "learning_rates": ShortName("model.learning_rate", float, "Axis model.learning_rate."),
    "alpha_rules": ShortName(
        ALPHA_RULE,
        AlphaRule,
        "Axis: fixed (model.lora.lora_alpha at every rank), proportional (the scale of model.lora, or "
        "of an arm's or task's own, at every rank), rslora (a scale of alpha / sqrt(r)).",
    ),
    "tasks": ShortName("data.task", str, "Axis data.task; {folder} in --data.source stands for the task's folder."),
}
LINKED_KEYS = {"data.encoder", "data.seed", "model.max_length", *(f"model.{name}" for name in LINKED)}
"""Options that follow from others."""


def joined_vary(args: Sequence[str]) -> list[str]:
    """`--vary KEY VALUE ...`, as often as given, as one `--vary` in JSON, which replaces that of a configuration.

    Raises:
        UsageError: `vary`: an axis without a name, or given twice.
    """
    kept, axes, position = [], {}, 0
    while position < len(args):
        end = position + 1
        if args[position] != "--vary":
            kept.append(args[position])
        else:
            while end < len(args) and not args[end].startswith("--"):
                end += 1
            key, *values = args[position + 1 : end] or [""]
            if not key or key in axes:
                raise UsageError(
                    "vary", f"expected --vary OPTION VALUE ..., each once, got {' '.join(args[position:end])}"
                )
            axes[key] = values
        position = end
    return [*kept, f"--vary={json.dumps(axes)}"] if axes else kept


class StudyOptions:
    """Reads arms and axes, each value as `fit` would; `given` are the options of the user's flags and file."""

    def __init__(self, parser: Parser, config: Any, given: Collection[str]) -> None:
        self.parser, self.config, self.given = parser, config, given
        keys = parser.known_keys()
        above = {key.rpartition(".")[0] for key in keys}
        self._known = [key for key in keys if ("." in key or key in OPTIONS) and key not in {*above, *LINKED_KEYS}]

    def axes(self) -> dict[str, list[Any]]:
        """Those of `--vary` and of the short names; ranks, if there is no other word of what to compare."""
        found = self._axes(self.config.vary)
        for name, (key, *_) in SHORT_NAMES.items():
            values = self.config[name]
            if values and key in found:
                raise UsageError("vary", f"expected {key} once, got it as --{name} too")
            if values:
                found[key] = list(values) if key == ALPHA_RULE else [self.value(key, value) for value in values]
        by_default = self.config.ranks is None and not self.config.vary and not self.config.arms
        return {**found, RANK: [1, 2, 4, 8]} if by_default else found

    def arms(self, method: Method) -> list[Arm]:
        """Those of the configuration, or the study's own method; and the references."""
        arms = [self._arm(name, options or {}) for name, options in self.config.arms.items()]
        if not arms and self.config.ranks != []:
            arms = [Arm(ARM_NAMES[method])]
        references: tuple[tuple[Method, Any], ...] = (("head", self.config.head_rate), ("full", self.config.full_rate))
        for reference, rates in references:
            if rates:
                axes = {"model.learning_rate": [self.value("model.learning_rate", rate) for rate in rates]}
                arms.append(Arm(ARM_NAMES[reference], {"model.method": reference}, axes, self.config.reference_seeds))
        return arms

    def of_task(self, task: str) -> Options:
        """The options that the task's file of `--task_config` gives and the user does not."""
        pattern = self.config.task_config
        options = self.options(read_options(pattern.replace("{task}", task))) if pattern is not None else {}
        return {key: value for key, value in options.items() if key not in self.given}

    def options(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Options of `fit` by full name, each as `fit` parses it, from the layout of a configuration or full names.

        Raises:
            UsageError: `vary`, there is no such option; its own key, the value is wrong.
        """
        named = {key: self._listed(key, value) for key, value in self._named(values).items()}
        if not named:
            return {}
        parsed = self.parser.parse_object(with_options({}, named), self.config, defaults=False)
        chosen = Namespace({key: parsed[key] for key in named})  # type: ignore[no-untyped-call]
        plain = json.loads(self.parser.dump(chosen, format="json", skip_validation=True, skip_unset=False))
        return {key: reduce(lambda place, name: place[name], key.split("."), plain) for key in named}

    def value(self, key: str, value: Any) -> Any:
        """An option's value as `fit` parses it; for errors see `options`."""
        return self.options({key: value})[key]

    def _named(self, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            name = f"{prefix}{key}"
            nested = isinstance(value, Mapping) and name not in self._known
            found |= self._named(value, f"{name}.") if nested else {name: value}
        return found

    def _listed(self, key: str, value: Any) -> Any:
        if key not in self._known:
            if key in self.parser.known_keys():
                raise UsageError("vary", f"trials can't differ in --{key}; leave it out")
            raise UsageError("vary", f"there is no option --{key} to vary{self.parser.nearest(key)}")
        names = key == SHORT_NAMES["targets"].key and isinstance(value, str) and not value.startswith("[")
        return value.split(",") if names else value

    def _axes(self, values: Any) -> dict[str, list[Any]]:
        if not isinstance(values, Mapping):
            raise UsageError("vary", f"expected lists of values by option, got {values!r:.60}")
        for key, given in values.items():
            if not isinstance(given, list) or not given:
                raise UsageError("vary", f"{key}: expected a list of values, got {given!r:.60}")
        return {key: [self.value(key, value) for value in given] for key, given in values.items()}

    def _arm(self, name: str, given: Any) -> Arm:
        if not isinstance(given, Mapping) or not isinstance(given.get("config", ""), str):
            raise UsageError("arms", f"{name}: expected options, config: FILE and vary: axes, got {given!r:.60}")
        read = self.options(read_options(given["config"])) if "config" in given else {}
        of_file = {key: value for key, value in read.items() if not (key in self.given and key.startswith("trainer."))}
        own = self.options({key: value for key, value in given.items() if key not in ("config", "vary")})
        return Arm(name, {**of_file, **own}, self._axes(given.get("vary", {})))
