"""A validation split out of the training sentences, where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_pl.data.drawing import stratified_order
from lora_pl.data.examples import Examples
from lora_pl.errors import UserError

VALIDATES = ("validation_file", "validation_share", "folds")
"""The data's settings that say what to validate on; at most one is given."""


@dataclass(frozen=True)
class HeldOut:
    """A share of the training sentences, or one of several folds of them, by label and seed.

    A text that occurs several times is drawn once: its copies are all in training or all in validation.
    """

    seed: int
    share: float | None = None
    folds: int | None = None
    fold: int | None = None
    """From 0."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> HeldOut | None:
        """What the data's settings ask for, None if they ask for nothing.

        Raises:
            UserError: `data.validation_share`, `data.folds`, `data.fold`: out of range, one without the other, or
                beside another validation split.
        """
        given = [name for name in VALIDATES if settings[name] is not None]
        if len(given) > 1:
            named = " and ".join(f"--data.{name}" for name in given)
            raise UserError(f"data.{given[-1]}", f"expected one of {named}, got {len(given)}; leave the others out")
        share, folds, fold = settings["validation_share"], settings["folds"], settings["fold"]
        if share is not None and not 0 < share < 1:
            raise UserError("data.validation_share", f"expected a share between 0 and 1, such as 0.1, got {share}")
        if folds is None and fold is not None:
            raise UserError("data.folds", f"expected the number of folds beside --data.fold {fold}, got none")
        if folds is not None and fold not in range(folds):
            got = "none" if fold is None else fold
            raise UserError("data.fold", f"expected 0 to {folds - 1} beside --data.folds {folds}, got {got}")
        return None if share is folds is None else cls(settings["seed"], share, folds, fold)

    @property
    def told(self) -> str:
        """What it is, for a line to read."""
        part = f"fold {self.fold} of {self.folds}" if self.folds else f"{100 * (self.share or 0):g}%"
        return f"{part} of the training split, drawn by seed {self.seed}"

    def mask(self, whole: Examples, classes: bool) -> NDArray[np.bool_]:
        """(sentences,): which of the training sentences are the validation split.

        Args:
            whole: The training sentences.
            classes: Whether their labels are classes, whose shares are kept; scores are drawn at random.

        Raises:
            UserError: `data.validation_share`, `data.folds`: one of the two splits would be too small.
        """
        numbers: dict[tuple[str, ...], int] = {}
        text = np.asarray([numbers.setdefault(row, len(numbers)) for row in zip(*whole.texts, strict=True)])
        first = np.unique(text, return_index=True)[1]
        labels = np.asarray(whole.labels, np.float32)[first] if classes else np.zeros(len(first), np.float32)
        held = np.zeros(len(first), bool)
        held[self._part(stratified_order(labels, self.seed), len(np.unique(labels)))] = True
        copies: NDArray[np.bool_] = held[text]
        return copies

    def _part(self, order: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
        total = len(order)
        if self.folds is not None:
            if total < self.folds:
                raise UserError("data.folds", f"expected at most {total}, one per different sentence, got {self.folds}")
            return np.array_split(order, self.folds)[self.fold or 0]
        count = round((self.share or 0) * total)
        if not classes <= count <= total - classes:
            raise UserError(
                "data.validation_share",
                f"{self.share} of {total} different sentences leaves {count} to validate on and {total - count} to "
                f"train on; expected at least {classes} in each, one per class",
            )
        return order[:count]
