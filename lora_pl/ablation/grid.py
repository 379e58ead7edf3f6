"""The trials of an ablation."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lora_pl.errors import UserError
from lora_pl.lora import LoRAConfig
from lora_pl.lora.config import DIVISORS, Scaling
from lora_pl.model.classifier import Method

AlphaRule = Literal["fixed", "proportional", "rslora"]
REFERENCES: tuple[Method, ...] = ("head", "full")
"""Trained without adapters, for comparison."""
WITHOUT_ADAPTERS = {"train_biases": "none", "train_norms": False}
"""Their settings of what goes with adapters."""


def alpha_of(rule: AlphaRule, rank: int, base: LoRAConfig) -> float:
    """Alpha at `rank`, the numerator of the scale as `base.scaling` says: alpha / r by default.

    fixed: alpha of `base`, so that the scale falls with r. proportional: the scale of `base` at every rank. rslora: a
    scale of base alpha / sqrt(r) (Kalajdzievski, 2023).
    """
    if rule == "proportional":
        return base.scale * DIVISORS[base.scaling](rank)
    return base.lora_alpha * (math.sqrt(rank) if (rule, base.scaling) == ("rslora", "standard") else 1)


@dataclass(frozen=True)
class Trial:
    """One training run of an ablation."""

    method: Method
    seed: int
    learning_rate: float
    rank: int = 0
    """0 where no adapter is trained."""
    alpha_rule: AlphaRule = "fixed"
    alpha: float = 0.0
    targets: tuple[str, ...] = ()
    scaling: Scaling = "standard"

    @property
    def name(self) -> str:
        """The name of its folder and its TensorBoard run."""
        lora = f"r{self.rank}-{self.alpha_rule}-{'+'.join(self.targets)}"
        what = lora if self.method == "lora" else self.method
        return re.sub(r"[^\w+.-]", "_", f"{what}-lr{self.learning_rate:g}-s{self.seed}")

    @property
    def scale(self) -> float:
        """What multiplies the update: alpha / r, or alpha / sqrt(r)."""
        return self.alpha / DIVISORS[self.scaling](self.rank) if self.rank else 0.0

    def settings(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """The trial's settings of a `LoRAClassifier`: those of the study, `model`, with its own."""
        own = {**model, "method": self.method, "learning_rate": self.learning_rate}
        if self.method == "lora":
            lora = {"r": self.rank, "lora_alpha": self.alpha, "target_modules": list(self.targets)}
            own["lora"] = {**model["lora"], **lora}
        else:
            own |= WITHOUT_ADAPTERS
        return own


@dataclass(frozen=True)
class Grid:
    """Every combination of the axes, for every seed, and the references for every seed."""

    ranks: Sequence[int]
    seeds: Sequence[int]
    learning_rates: Sequence[float]
    alpha_rules: Sequence[AlphaRule]
    targets: Sequence[tuple[str, ...]]
    base: LoRAConfig
    """For the rules of alpha."""
    references: dict[Method, float] = field(default_factory=dict)
    """Methods to train for comparison, with their learning rates."""
    reference_seeds: int | None = None
    """How many of the seeds they are trained with; by default all."""

    def __post_init__(self) -> None:
        for axis in ("seeds", "learning_rates", "alpha_rules", "targets"):
            values = getattr(self, axis)
            _require(axis, bool(values), "at least one value", "none")
            _require(axis, len(set(values)) == len(values), "each value once", list(values))
        _require("ranks", len(set(self.ranks)) == len(self.ranks), "each rank once", list(self.ranks))
        _require("ranks", all(rank >= 1 for rank in self.ranks), "integers >= 1", list(self.ranks))
        _require("learning_rates", all(rate > 0 for rate in self.learning_rates), "numbers > 0", self.learning_rates)
        _require("ranks", bool(self.ranks or self.references), "at least one rank", "none")

    def trials(self) -> list[Trial]:
        """All trials, seed by seed, so that a study that is stopped early compares all ranks."""
        axes = list(itertools.product(self.targets, self.alpha_rules, self.learning_rates, self.ranks))
        found = []
        for number, seed in enumerate(self.seeds):
            if self.reference_seeds is None or number < self.reference_seeds:
                found += [Trial(method, seed, rate) for method, rate in self.references.items()]
            for targets, rule, rate, rank in axes:
                alpha = alpha_of(rule, rank, self.base)
                found.append(Trial("lora", seed, rate, rank, rule, alpha, targets, self.base.scaling))
        names = [trial.name for trial in found]
        _require("targets", len(set(names)) == len(names), "sets that differ in letters", list(self.targets))
        return found


def _require(axis: str, holds: bool, expected: str, given: object) -> None:
    if not holds:
        raise UserError(axis, f"expected {expected}, got {given}")
