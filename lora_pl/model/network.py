"""A base with adapters and a head: what is built from the settings, and as its state what of it is trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lora_pl.data.batches import Batch
from lora_pl.data.tasks import get_task
from lora_pl.encoder import EMBEDDED
from lora_pl.encoder.biases_and_norms import TrainBiases, biases_and_norms, require_biases_and_norms
from lora_pl.encoder.dtype import BaseDtype, resolve_dtype
from lora_pl.encoder.head import HeadKind
from lora_pl.encoder.source import canonical_name
from lora_pl.errors import UserError
from lora_pl.lora import LoRAConfig, LoRAError, adapter_state_dict, load_adapter_state_dict, mark_only_lora_as_trainable
from lora_pl.lora.state import below
from lora_pl.model.base import Base
from lora_pl.model.monitor import reported, require_monitor
from lora_pl.model.schedule import Schedule
from lora_pl.model.training_loss import ClassWeights, TrainingLoss
from lora_pl.storage.checkpoint import Started
from lora_pl.storage.flat import primitive
from lora_pl.storage.paths import expanded
from lora_pl.storage.schema import arguments, require_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Method = Literal["lora", "head", "full"]


class Network(nn.Module):
    """From batches to logits. Its arguments, the settings of every model, are described at `LoRAClassifier`."""

    def __init__(
        self,
        encoder: str | Path = EMBEDDED,
        task: str = "sst2",
        label_names: list[str] | None = None,
        pairs: bool | None = None,
        max_length: int = 64,
        lora: LoRAConfig = LoRAConfig(),  # noqa: B008  frozen
        method: Method = "lora",
        train_biases: TrainBiases = "none",
        train_norms: bool = False,
        head: HeadKind = "linear",
        dropout: float | None = None,
        base_dtype: BaseDtype = "auto",
        graphs: bool = False,
        nonfinite_loss: Literal["stop", "skip"] = "stop",
        class_weights: ClassWeights | None = None,
        label_smoothing: float = 0.0,
        monitor: str | None = None,
        learning_rate: float = 1e-4,
        head_learning_rate: float | None = None,
        weight_decay: float = 0.01,
        decay_bias: bool = True,
        schedule: Schedule = "constant",
        warmup_ratio: float = 0.0,
        start_from: str | Path | None = None,
    ) -> None:
        settings = {name: primitive(value) for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        lora = LoRAConfig.of(lora)
        settings["lora"] = lora.to_dict()
        require_json(settings, arguments(Network.__init__), "model", "")
        name: str = settings["encoder"]
        if start_from is not None:
            settings["start_from"] = os.path.abspath(expanded(start_from))
        _require_ranges(settings)
        self.task = get_task(task).customized(label_names, pairs)
        require_monitor(monitor, reported(self.task))
        self.loss = TrainingLoss(self.task, settings)
        canonical = {"encoder": canonical_name(name), "label_names": self.label_names, "pairs": self.pairs}
        # primitive values only, so that checkpoints load with weights_only=True
        self._keep({**settings, **canonical})
        self.base = Base.load(name, dropout, head)
        self.encoder = self.base.encoder
        self.max_length = min(max_length, self.base.max_tokens)
        self.head = self.base.new_head(head, self.task.outputs)
        self.adapted = self.base.inject(lora) if method == "lora" else []
        require_biases_and_norms(self.encoder, self.hparams)
        mark_only_lora_as_trainable(self, also=self.trained_beside)
        self.awaits_data = method == "lora" and lora.init == "eva"
        """Whether A is to come from the data of the `fit` that follows."""
        self._ranks_are_open = self.awaits_data and lora.distributes_ranks
        self.started: Started | None = None
        self._missing_start: str | None = settings["start_from"]  # a run that is resumed does not need it
        if start_from is not None and os.path.exists(settings["start_from"]):
            self._start(settings["start_from"])
        if base_dtype != "auto":
            self.base.cast(resolve_dtype(base_dtype, ""))

    def _keep(self, settings: dict[str, Any]) -> None:
        """Keep the arguments; of a subclass Lightning does."""
        self.hparams = settings

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's."""
        return self.base.tokenizer

    @property
    def label_names(self) -> list[str]:
        """The classes in the order of their ids; none for a regression."""
        return list(self.task.labels)

    @property
    def pairs(self) -> bool:
        """Whether an example is two texts."""
        return self.task.pairs

    @property
    def trained_beside(self) -> list[nn.Module | nn.Parameter]:
        """What is trained beside the adapters: whole modules, and biases and norms of the encoder."""
        if self.hparams["method"] == "full":
            return [self.encoder, self.head]
        return [*biases_and_norms(self.encoder, self.hparams).values(), self.head]

    def _start(self, path: str) -> None:
        """Take the weights of a checkpoint; see `PlainClassifier`."""
        raise NotImplementedError

    def require_start(self) -> None:
        """Raise `model.start_from` if there is no such file and the weights have come from no checkpoint since."""
        if self._missing_start is not None:
            raise UserError("model.start_from", f"{self._missing_start}: no such file")

    def forward(self, batch: Batch) -> Tensor:
        """Logits in fp32, (batch, outputs)."""
        self.require_start()
        features = self.base.features(batch)  # (batch, hidden)
        with torch.autocast(self.base.device.type, enabled=False):
            logits: Tensor = self.head(features.to(next(self.head.parameters()).dtype))
        return logits.float()

    def state_dict(  # type: ignore[override]
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """The trained parameters only: adapters, biases and norms, and head (`method: full`: encoder and head)."""
        own = adapter_state_dict(self, also=self.trained_beside)
        state = {} if destination is None else destination
        state.update({prefix + name: tensor for name, tensor in own.items()})
        return state

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """As `load_state_dict`, in that of a module around it."""
        own = {name: state_dict.pop(name) for name in [*state_dict] if name.startswith(prefix)}
        try:
            self.load_state_dict(below(prefix, own))
        except LoRAError as error:
            error_msgs.append(str(error))
        state_dict.update(nn.Module.state_dict(self, prefix=prefix))  # what the modules within look for

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The inverse of `state_dict`, always strict; a LoRAError (`state`) lists every key that does not fit."""
        load_adapter_state_dict(self, state_dict, also=self.trained_beside)
        self.awaits_data = False
        self._missing_start = None


def _require_ranges(settings: Mapping[str, Any]) -> None:
    rate, head_rate = settings["learning_rate"], settings["head_learning_rate"]
    for name, holds, expected in (
        ("learning_rate", rate > 0, "a number > 0"),
        ("head_learning_rate", head_rate is None or head_rate > 0, "a number > 0"),
        ("weight_decay", settings["weight_decay"] >= 0, "a number >= 0"),
        ("warmup_ratio", 0 <= settings["warmup_ratio"] < 1, "a fraction of the steps in [0, 1)"),
        ("max_length", settings["max_length"] >= 3, "at least 3 tokens"),
        ("dropout", 0 <= (settings["dropout"] or 0) < 1, "a probability in [0, 1)"),
    ):
        if not holds:
            raise UserError(f"model.{name}", f"expected {expected}, got {settings[name]}")
