"""What a new model starts from: the adapter that another run trained, and its head where the classes are the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lora_pl.data.tasks import task_of
from lora_pl.errors import UserError
from lora_pl.lora import LoRAConfig, LoRAError
from lora_pl.model.base import Base
from lora_pl.model.stored import read_model
from lora_pl.storage.checkpoint import SETTINGS_KEY, Started, check_base
from lora_pl.storage.digest import sha256_of
from lora_pl.storage.flat import flatten
from lora_pl.storage.settings import unequal

OF_HEAD = ("task", "label_names", "pairs", "head")
"""The settings that concern the head alone."""


class Start:
    """A checkpoint that models on a base start from.

    Args:
        path: The file.
        checkpoint: Its content, as `read_model` gives it.
        base: The models'.

    Raises:
        UserError: `checkpoint.base`: it was trained on another one; `task`, `label_names`: it names others than it has.
    """

    def __init__(self, path: str, checkpoint: Mapping[str, Any], base: Base) -> None:
        check_base(checkpoint, base.fingerprints)
        self.path, self.base = path, base
        self.settings, self.state = self._resolved(checkpoint[SETTINGS_KEY]), checkpoint["state_dict"]
        self.task = task_of(self.settings)
        self.record = Started(checkpoint=path, sha256=sha256_of(path))

    def tensors(self, settings: Mapping[str, Any]) -> dict[str, Tensor]:
        """What a model of these settings takes, by the names in its state: all, or all but the head.

        Raises:
            UserError: `model.start_from`: method, rank, alpha, targets, patterns, variant or trained biases and norms
                differ, so that the tensors would not fit or would compute something else; or there is nothing to take.
        """
        self._require_same(settings)
        takes_head = self.takes_head(settings)
        taken = {name: tensor for name, tensor in self.state.items() if takes_head or not name.startswith("head.")}
        if not taken:
            raise UserError(
                "model.start_from", f"{self.path} holds a head alone, and it is of another kind or has other classes"
            )
        return taken

    def takes_head(self, settings: Mapping[str, Any]) -> bool:
        """Whether the heads are of one kind and their outputs mean the same: scores, or the same classes in order."""
        now = task_of(settings)
        same_outputs = (self.task.problem_type, self.task.labels) == (now.problem_type, now.labels)
        return same_outputs and self.settings["head"] == settings["head"]

    def told(self, settings: Mapping[str, Any]) -> str:
        """A line on what is taken."""
        taken = {"lora": ["adapter"], "full": ["encoder"], "head": []}[settings["method"]]
        if self.takes_head(settings):
            return f"start: {' and '.join([*taken, 'head'])} from {self.path}"
        what = f"{self.settings['head']}, {', '.join(self.task.labels) or 'a score'}"
        return f"start: {taken[0]} from {self.path}; the head is drawn, as that one differs ({what})"

    def _require_same(self, settings: Mapping[str, Any]) -> None:
        given = self._resolved(settings)
        for key in unequal(self.settings, given):
            if key not in OF_HEAD:
                before, now = flatten(self.settings)[key], flatten(given)[key]
                raise UserError(
                    "model.start_from",
                    f"{self.path} was trained with {key} = {before}, but the model has {key} = {now}; give it the same",
                )

    def _resolved(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with the names of the base's layers as targets."""
        return {**settings, "lora": self.base.resolve(LoRAConfig.of(settings["lora"])).to_dict()}


def read_start(path: str, base: Base) -> Start:
    """The checkpoint that models on `base` start from; a UserError, `model.start_from`, where it can't be read."""
    if os.path.isdir(path):
        raise UserError("model.start_from", f"{path} is a folder; lora_pl import makes a checkpoint of an adapter's")
    try:
        return Start(path, read_model(path), base)
    except (UserError, LoRAError, OSError) as error:
        raise UserError("model.start_from", getattr(error, "message", str(error))) from error
