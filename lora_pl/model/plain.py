"""The model without Lightning: what it computes, and what its checkpoints hold."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from lora_pl.data.batches import BATCH_TOKENS, Batch, Batching
from lora_pl.data.sentence_data import SentenceData
from lora_pl.data.tasks import Prediction, get_task
from lora_pl.data.texts import Text, as_columns, require_list
from lora_pl.data.tokens import Tokens
from lora_pl.encoder import EMBEDDED
from lora_pl.encoder.biases_and_norms import TrainBiases, biases_and_norms, require_biases_and_norms
from lora_pl.encoder.dtype import BaseDtype, resolve_dtype
from lora_pl.encoder.head import HeadKind
from lora_pl.encoder.source import canonical_name, require_own_package
from lora_pl.errors import UserError
from lora_pl.lora import (
    LoRAConfig,
    LoRAError,
    adapter_state_dict,
    load_adapter_state_dict,
    mark_only_lora_as_trainable,
    merged_lora,
)
from lora_pl.lora.injection import resize_lora
from lora_pl.lora.state import below
from lora_pl.model.base import Base
from lora_pl.model.evaluating import evaluating
from lora_pl.model.monitor import reported, require_monitor
from lora_pl.model.schedule import Schedule
from lora_pl.model.start import Start
from lora_pl.model.training_loss import ClassWeights, TrainingLoss
from lora_pl.reporting import say
from lora_pl.storage.checkpoint import BASE_KEY, DATA_KEY, SETTINGS_KEY, START_KEY, Started, check_base, read_checkpoint
from lora_pl.storage.flat import primitive
from lora_pl.storage.paths import expanded
from lora_pl.storage.schema import arguments, require_json
from lora_pl.storage.settings import differing, read_settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Method = Literal["lora", "head", "full"]

MERGED_FROM = 256
"""The number of texts from which merging pays off in `predict`."""


class PlainClassifier(nn.Module):
    """All of `LoRAClassifier` but its training: what predicts and exports, without the seconds of Lightning's imports.

    Args:
        encoder: A hub name, a folder, or package://NAME/PATH (a folder inside an installed package).
        base_dtype: The frozen weights' dtype; auto is the dtype of `--trainer.precision`.

    The others are described at `LoRAClassifier`.
    """

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
        require_json(settings, arguments(PlainClassifier.__init__), "model", "")
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
            self._start(read_start(settings["start_from"], self.base))
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

    def _start(self, start: Start) -> None:
        """Copy what `start` gives over what was drawn, so that all random draws are those without it."""
        drawn = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        ranked = self._ranked_as(start.settings)
        try:
            tensors = start.tensors(ranked)
            self._take_ranks(ranked)
            self.load_state_dict({**drawn, **tensors})
        except LoRAError as error:
            raise UserError("model.start_from", f"{start.path}: {error}") from None
        self.started = start.record
        say(start.told(self.hparams))

    def _ranked_as(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The model's settings; with the ranks of the stored ones, if they were left to EVA."""
        lora = LoRAConfig.of(self.hparams["lora"])
        if self._ranks_are_open:
            lora = lora.with_patterns_of(LoRAConfig.of(stored["lora"]))
        return {**self.hparams, "lora": lora.to_dict()}

    def _take_ranks(self, ranked: Mapping[str, Any]) -> None:
        """Resize the adapters, where the ranks were left to EVA."""
        if self._ranks_are_open:
            resize_lora(self.encoder, self.base.resolve(LoRAConfig.of(ranked["lora"])))
            self.hparams["lora"] = ranked["lora"]

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the base's name and fingerprints, and what the model started from."""
        self.require_start()
        checkpoint[BASE_KEY] = dict(self.base.fingerprints)
        if self.started is not None:
            checkpoint[START_KEY] = dict(self.started)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise `checkpoint.settings` or `checkpoint.base` if the model computes something else, or on another base."""
        settings = model_settings(checkpoint, "the checkpoint", model=type(self))
        ranked = self._ranked_as(settings)
        for difference in differing(settings, ranked):
            say(f"checkpoint: {difference}")
        check_base(checkpoint, self.base.fingerprints)
        self._take_ranks(ranked)
        self.hparams["start_from"], self.started = settings["start_from"], checkpoint.get(START_KEY)

    @contextmanager
    def merged_for_prediction(self, dtype: torch.dtype = torch.float32) -> Iterator[None]:
        """Within the context, all calls of `predict` share one merge: in fp32, then rounded once to `dtype`.

        For int8 nothing is merged: adapters fit the codes that they were trained beside.

        In this thread alone; but the base stays in `dtype` afterwards, so no other thread may use it meanwhile.
        """
        merged = nullcontext() if dtype == torch.int8 else merged_lora(self.encoder, dtype)
        with torch.inference_mode(False), merged:  # weights outlive an inference mode
            self.base.cast(dtype)
            yield

    @torch.inference_mode()
    def predict(
        self, texts: Sequence[Text], batch_tokens: int = BATCH_TOKENS, batching: Batching | None = None
    ) -> list[Prediction]:
        """The model's answers to the texts, in their order, in eval mode. Threads may share a model.

        For 256 texts or more, adapters on an fp32 base are merged, for this call alone.

        Args:
            texts: Sentences, or pairs of sentences for a task on pairs.
            batch_tokens: Tokens per forward pass; texts of like length share a batch.
            batching: packed or padded; by default what the encoder takes.

        Returns:
            A dict per text: the label, its probability as `score`, and every label's probability; for several labels
            per text the `labels` above 1/2, and every label's probability; for a regression the `score` alone.

        Raises:
            UserError: `predict.texts`: one string instead of a list, or pairs for single sentences.
        """
        require_list(texts)
        if not texts:
            return []
        merges = len(texts) >= MERGED_FROM and self.base.weights == torch.float32
        with merged_lora(self.encoder) if merges else nullcontext():
            return self.task.predictions(self.logits(texts, batch_tokens, batching))

    def logits(
        self, texts: Sequence[Text], batch_tokens: int = BATCH_TOKENS, batching: Batching | None = None
    ) -> Tensor:
        """(texts, outputs), fp32, on the CPU: the logits behind `predict`; adapters stay merged or unmerged."""
        return self.logits_of(self.tokenize(texts), batch_tokens, batching)

    def tokenize(self, texts: Sequence[Text]) -> Tokens:
        """The texts' tokens, cut to `max_length`; a UserError, `predict.texts`, if the model reads others."""
        return self.base.tokenize(as_columns(texts, self.pairs), self.max_length)

    @torch.inference_mode()
    def logits_of(self, tokens: Tokens, batch_tokens: int = BATCH_TOKENS, batching: Batching | None = None) -> Tensor:
        """(texts, outputs): the `logits` of texts that are tokenized."""
        with evaluating(self):
            batches = self.base.batches(tokens, batch_tokens, batching)
            rows, indices = zip(*((self(batch).cpu(), torch.tensor(own)) for batch, own in batches), strict=True)
        return torch.cat(rows)[torch.cat(indices).argsort()]

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path,
        map_location: str | torch.device | None = None,
        strict: bool | None = True,
        weights_only: bool | None = True,
        **overrides: Any,
    ) -> Self:
        """The model of a checkpoint, on `map_location`, in eval mode.

        Args:
            checkpoint_path: `best.ckpt` or `last.ckpt` of a run.
            map_location: The device; by default the CPU.
            strict: As in Lightning; loading is always strict.
            weights_only: As in Lightning; no code of a checkpoint is ever run.
            overrides: Constructor arguments to change that do not change what the checkpoint computes, such as
                `encoder` if the base has moved.

        Raises:
            UserError: `checkpoint...`: see `read_model`; the overrides or the base differ from the checkpoint's;
                `model...`: there is no such argument.
        """
        if strict is False:
            raise UserError("model.strict", "expected True: part of a checkpoint would be another model; leave it out")
        checkpoint = read_model(checkpoint_path, cls)
        for name in overrides.keys() - checkpoint[SETTINGS_KEY].keys():
            raise UserError(f"model.{name}", f"{cls.__name__} has no such argument")
        model = cls.of_file(checkpoint[SETTINGS_KEY], overrides)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        return model.to(map_location or "cpu").eval()

    @classmethod
    def of_file(cls, settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> Self:
        """The untrained model that the settings of a file describe, with some of the caller's own.

        It does not read what the file's model started from: its weights are those of the file.
        """
        if overrides.get("encoder") is None:
            require_own_package(settings["encoder"])
        model = cls(**{**settings, **overrides, "start_from": None})
        model.hparams["start_from"] = settings["start_from"]
        return model


def read_model(path: str | Path, model: type[PlainClassifier] = PlainClassifier) -> dict[str, Any]:
    """The checkpoint of a model, its settings checked against the arguments of model and data.

    Raises:
        UserError: `checkpoint...`: see `read_checkpoint` and `read_settings`.
    """
    checkpoint = read_checkpoint(path)
    data, known = checkpoint.get(DATA_KEY, {}), arguments(SentenceData.__init__)
    require_json(data, known, "checkpoint.settings", f"{path}: data.", unknown="ignore")
    return {**checkpoint, SETTINGS_KEY: model_settings(checkpoint, str(path), model=model)}


def read_start(path: str, base: Base) -> Start:
    """The checkpoint that models on `base` start from; a UserError, `model.start_from`, where it can't be read."""
    if os.path.isdir(path):
        raise UserError("model.start_from", f"{path} is a folder; lora_pl import makes a checkpoint of an adapter's")
    try:
        return Start(path, read_model(path), base)
    except (UserError, LoRAError, OSError) as error:
        raise UserError("model.start_from", getattr(error, "message", str(error))) from error


def model_settings(
    checkpoint: Mapping[str, Any],
    source: str,
    kind: str = "checkpoint",
    model: type[PlainClassifier] = PlainClassifier,
) -> dict[str, Any]:
    """The arguments of `model` in a checkpoint or the record of an adapter folder; see `read_settings`.

    Those that a subclass adds are taken as they are.
    """
    stored = dict(checkpoint[SETTINGS_KEY])
    added = inspect.signature(model).parameters.keys() - inspect.signature(PlainClassifier).parameters.keys()
    own = {name: stored.pop(name) for name in added & stored.keys()}
    settings = read_settings(stored, PlainClassifier.__init__, source, kind)
    try:
        return {**settings, "lora": LoRAConfig.of(settings["lora"]).to_dict(), **own}
    except TypeError as error:
        raise UserError(f"{kind}.version", f"{source}: written by another version of lora_pl: {error}") from None
    except LoRAError as error:
        raise UserError(f"{kind}.settings", f"{source}: model.lora.{error}") from None


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
