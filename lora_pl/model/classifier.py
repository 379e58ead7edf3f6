"""The LightningModule: an encoder with LoRA and a head."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor, nn

from lora_pl.data.batches import BATCH_TOKENS, Batch, Batching
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.data.tasks import Prediction, get_task
from lora_pl.data.texts import Text, as_columns, require_list
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
    eva_init,
    eva_matrices,
    load_adapter_state_dict,
    mark_only_lora_as_trainable,
    merged_lora,
)
from lora_pl.lora.injection import resize_lora
from lora_pl.model.base import Base
from lora_pl.model.eva import input_moments
from lora_pl.model.evaluating import evaluating
from lora_pl.model.metrics import StageMetrics, reported
from lora_pl.model.module import TaskModule
from lora_pl.model.monitor import require_monitor
from lora_pl.model.optimizer import parameter_groups
from lora_pl.model.schedule import Schedule
from lora_pl.model.start import Start
from lora_pl.model.training_loss import ClassWeights, TrainingLoss
from lora_pl.reporting import say
from lora_pl.storage.checkpoint import (
    BASE_KEY,
    DATA_KEY,
    SETTINGS_KEY,
    START_KEY,
    Started,
    check_base,
    differing,
    read_checkpoint,
    read_settings,
)
from lora_pl.storage.flat import primitive
from lora_pl.storage.schema import arguments, require_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Method = Literal["lora", "head", "full"]

MERGED_FROM = 256
"""The number of texts from which merging pays off in `predict`."""


class LoRAClassifier(TaskModule):
    """A pretrained encoder with LoRA on chosen linear layers and a head on the first token's feature.

    Example:
        >>> model = LoRAClassifier.load_from_checkpoint("checkpoints/demo/best.ckpt")  # doctest: +SKIP
        >>> model.predict(["This movie was absolutely trash!"])  # doctest: +SKIP
        [{'label': 'negative', 'score': 0.99, 'probabilities': {'negative': 0.99, 'positive': 0.01}}]

    Args:
        encoder: A hub name, a folder, or package://NAME/PATH (a folder inside an installed package).
        task: A GLUE task, or custom or multilabel with label_names.
        label_names: The classes in the order of their ids; by default the task's.
        pairs: Whether an example is two texts; by default the task's.
        max_length: The most tokens of a text; `predict` truncates longer ones.
        lora: Rank, alpha, dropout, targets and initialization.
        method: Trained beside the head: lora (the adapters), head (nothing) or full (the whole encoder).
        train_biases: Biases trained beside the adapters: those of the adapted layers (lora), or all of the encoder,
            norms' too (BitFit; Zaken et al., 2021).
        train_norms: Whether weight and bias of every norm of the encoder are trained beside the adapters.
        head: linear (on the first token's feature) or architecture (Transformers' head for this encoder).
        dropout: The encoder's, on hidden states and attention, in training; by default its configuration's.
        base_dtype: The frozen weights' dtype; auto is the dtype of the trainer's precision (bfloat16 for bf16-mixed),
            or float32 without a trainer. Adapters, head, norms and optimizer are always fp32.
        nonfinite_loss: Whether an inf or NaN loss stops the run or skips the batch.
        class_weights: Weights of the classes in the training loss: a number for each, in the order of their ids, or
            balanced (n / (classes x the class's count), from the training labels); by default all count the same. For
            several labels per text they multiply the terms of labels that are there, and balanced is without / with.
        label_smoothing: The share of each training label that is spread over all classes, in [0, 1); for several labels
            per text over there and not there.
        monitor: The validation metric that chooses the best checkpoint: one of the task's, or loss (lower is better);
            by default the task's first.
        learning_rate: AdamW's, at the schedule's peak.
        head_learning_rate: The head's; by default learning_rate.
        weight_decay: AdamW's, on all trained parameters.
        decay_bias: Whether weight_decay applies to biases and norms too.
        schedule: constant or linear (to zero at the last step).
        warmup_ratio: The fraction of all steps over which the learning rate rises from zero.
        start_from: A checkpoint on the same base, with the same method, rank, alpha, targets, variant, and the same
            trained biases and norms: training starts from its adapter, and from its head if the classes are the same.
            Only a new model reads it: a file that is missing is an error when the model is used, unless a checkpoint
            was loaded into it by then.
    """

    def __init__(
        self,
        encoder: str = EMBEDDED,
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
        if isinstance(start_from, str | Path):
            settings["start_from"] = os.path.abspath(os.path.expanduser(start_from))
        require_json(settings, arguments(LoRAClassifier.__init__), "model", "")
        _require_ranges(settings)
        self.task = get_task(task).customized(label_names, pairs)
        require_monitor(monitor, reported(self.task))
        self.loss = TrainingLoss(self.task, settings)
        canonical = {"encoder": canonical_name(encoder), "label_names": self.label_names, "pairs": self.pairs}
        # primitive values only, so that checkpoints load with weights_only=True
        self.save_hyperparameters({**settings, **canonical})
        self.base = Base.load(encoder, dropout, head)
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
        self.metrics = StageMetrics(self.task)

    @classmethod
    def for_data(cls, data: SentenceDataModule, **settings: Any) -> LoRAClassifier:
        """A model for the data's task, labels and encoder, initialized as by `lora_pl fit` with the same settings.

        Args:
            data: Gives encoder, task, label_names, pairs, max_length, and the seed of all random generators, for the
                model and the run that follows.
            settings: Further arguments of `LoRAClassifier`.
        """
        seed_everything(data.seed, workers=True, verbose=False)
        return cls(
            encoder=data.encoder,
            task=data.task.name,
            label_names=data.label_names,
            pairs=data.pairs,
            max_length=data.max_length,
            **settings,
        )

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

    def stage_metrics(self) -> list[StageMetrics]:
        """Those of the one head."""
        return [self.metrics]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Encoder and head, each with its rate."""
        return parameter_groups(self.encoder, self.head, self.hparams)

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

    def setup(self, stage: str) -> None:
        """As `TaskModule.setup`; for `fit` balanced weights, and A of a new run with init eva, from the training data.

        Lightning does not say yet whether `fit` has a `ckpt_path`; the checkpoint's A and ranks are loaded over these.

        Raises:
            UserError: `model.class_weights`: a class has no example; `model.lora.eva_batches`: the batches have too few
                tokens; `model.lora.init`, `model.lora.eva_rho`: the trainer has no data module, or would not hand back
                the ranks.
        """
        super().setup(stage)
        if stage == "fit":
            self.loss.take_weights(self.trainer.datamodule)  # type: ignore[attr-defined]
        if stage == "fit" and self.awaits_data:
            self._start_from_data()

    def _start_from_data(self) -> None:
        lora = LoRAConfig.of(self.hparams["lora"])
        resolved = self.base.resolve(lora)
        _require_eva(self.trainer, lora)
        self.to(self.trainer.strategy.root_device)
        try:
            moments = input_moments(self.base, self.trainer.datamodule.train_dataloader(), lora.eva_batches)  # type: ignore[attr-defined]
            matrices = eva_matrices(resolved, moments)
        except LoRAError as error:
            raise UserError(f"model.lora.{error.key}", error.args[1]) from None
        # every process has seen batches of its own; the first one's A holds for all
        ranked = eva_init(self.encoder, resolved, self.trainer.strategy.broadcast(matrices))
        if ranked != resolved:
            self.hparams["lora"] = lora.with_patterns_of(ranked).to_dict()
        self.awaits_data = False
        ranks = [len(matrix) for matrix in matrices.values()]
        say(f"eva: A from {max(moments.rows.values()):,} tokens; ranks {min(ranks)} to {max(ranks)}")

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
        with torch.autocast(self.device.type, enabled=False):
            logits: Tensor = self.head(features)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """The loss of a batch; None if it is inf or NaN and such batches are skipped."""
        logits, loss = self._step(batch, self.loss)
        if not math.isfinite(value := loss.item()):
            self._nonfinite(value, batch_idx)
            return None
        self.metrics.of("train").update(logits, batch.labels, loss)
        has_bar = self.trainer.progress_bar_callback is not None  # for which Lightning reads the loss at every step
        self.log("train/loss", loss, prog_bar=has_bar, batch_size=len(batch))
        return loss

    def _nonfinite(self, loss: float, batch_idx: int) -> None:
        where = f"the loss is {loss} at step {self.global_step} (epoch {self.current_epoch}, batch {batch_idx})"
        if self.hparams["nonfinite_loss"] == "skip":
            say(f"{where}; the batch is skipped")
            return
        paths = [getattr(callback, "last_model_path", "") for callback in self.trainer.checkpoint_callbacks]
        good = next((path for path in reversed(paths) if path), "none yet")
        raise UserError(
            "model.nonfinite_loss", f"{where}; last good checkpoint: {good}; lower the learning rate, or take skip"
        )

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the split's loss and metrics."""
        self._evaluate(batch, "val", dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As `validation_step`."""
        self._evaluate(batch, "test", dataloader_idx)

    def _evaluate(self, batch: Batch, stage: str, split: int) -> None:
        logits, loss = self._step(batch, self.task.loss)
        self.metrics.of(stage, split).update(logits, batch.labels, loss, batch.rows)

    def _step(self, batch: Batch, loss_of: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The logits and the mean loss of a batch."""
        logits = self(batch)
        return logits, loss_of(logits, batch.labels)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training metrics."""
        self._log("train")

    def on_validation_epoch_end(self) -> None:
        """Log the exact metrics of every validation split."""
        self._log("val")

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        self._log("test")

    def _log(self, stage: str) -> None:
        if stage != "train":
            self.check_finite(stage)
        for name, value in self.metrics.compute(stage).items():
            if name != "train/loss":  # logged by step
                shown = stage == "val" and (name == self.monitor or not name.startswith("val/loss"))
                self.log(name, value, prog_bar=shown)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The trained parameters only: adapters, biases and norms, and head (`method: full`: encoder and head)."""
        return adapter_state_dict(self, also=self.trained_beside)

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
        settings = model_settings(checkpoint, "the checkpoint")
        ranked = self._ranked_as(settings)
        for difference in differing(settings, ranked):
            say(f"checkpoint: {difference}")
        check_base(checkpoint, self.base.fingerprints)
        self._take_ranks(ranked)
        self.hparams["start_from"], self.started = settings["start_from"], checkpoint.get(START_KEY)

    @contextmanager
    def merged_for_prediction(self, dtype: torch.dtype = torch.float32) -> Iterator[None]:
        """Within the context, all calls of `predict` share one merge: in fp32, then rounded once to `dtype`.

        In this thread alone; but the base stays in `dtype` afterwards, so no other thread may use it meanwhile.
        """
        with torch.inference_mode(False), merged_lora(self.encoder, dtype):  # weights outlive an inference mode
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
        merges = len(texts) >= MERGED_FROM and self.base.dtype == torch.float32
        with merged_lora(self.encoder) if merges else nullcontext():
            return self.task.predictions(self.logits(texts, batch_tokens, batching))

    @torch.inference_mode()
    def logits(
        self, texts: Sequence[Text], batch_tokens: int = BATCH_TOKENS, batching: Batching | None = None
    ) -> Tensor:
        """(texts, outputs), fp32, on the CPU: the logits behind `predict`; adapters stay merged or unmerged."""
        tokens = self.base.tokenize(as_columns(texts, self.pairs), self.max_length)
        with evaluating(self):
            batches = self.base.batches(tokens, batch_tokens, batching)
            rows, indices = zip(*((self(batch).cpu(), torch.tensor(own)) for batch, own in batches), strict=True)
        return torch.cat(rows)[torch.cat(indices).argsort()]

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = "cpu", **overrides: Any
    ) -> LoRAClassifier:
        """The model of a checkpoint, on `map_location`, in eval mode.

        Args:
            checkpoint_path: `best.ckpt` or `last.ckpt` of a run.
            map_location: The device.
            overrides: Constructor arguments to change that do not change what the checkpoint computes, such as
                `encoder` if the base has moved.

        Raises:
            UserError: `checkpoint...`: see `read_model`; the overrides or the base differ from the checkpoint's.
        """
        checkpoint = read_model(checkpoint_path)
        model = cls.of_file(checkpoint[SETTINGS_KEY], overrides)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        return model.to(map_location).eval()

    @classmethod
    def of_file(cls, settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> LoRAClassifier:
        """The untrained model that the settings of a file describe, with some of the caller's own.

        It does not read what the file's model started from: its weights are those of the file.
        """
        if overrides.get("encoder") is None:
            require_own_package(settings["encoder"])
        model = cls(**{**settings, **overrides, "start_from": None})
        model.hparams["start_from"] = settings["start_from"]
        return model


def read_model(path: str | Path) -> dict[str, Any]:
    """The checkpoint of a model, its settings checked against the arguments of model and data.

    Raises:
        UserError: `checkpoint...`: see `read_checkpoint` and `read_settings`.
    """
    checkpoint = read_checkpoint(path)
    data, known = checkpoint.get(DATA_KEY, {}), arguments(SentenceDataModule.__init__)
    require_json(data, known, "checkpoint.settings", f"{path}: data.", unknown="ignore")
    return {**checkpoint, SETTINGS_KEY: model_settings(checkpoint, str(path))}


def read_start(path: str, base: Base) -> Start:
    """The checkpoint that models on `base` start from; a UserError, `model.start_from`, where it can't be read."""
    if os.path.isdir(path):
        raise UserError("model.start_from", f"{path} is a folder; lora_pl import makes a checkpoint of an adapter's")
    try:
        return Start(path, read_model(path), base)
    except (UserError, LoRAError, OSError) as error:
        raise UserError("model.start_from", str(error).removeprefix(f"{getattr(error, 'key', '')}: ")) from error


def model_settings(checkpoint: Mapping[str, Any], source: str, kind: str = "checkpoint") -> dict[str, Any]:
    """The arguments of `LoRAClassifier` in a checkpoint or the record of an adapter folder; see `read_settings`."""
    settings = read_settings(checkpoint, LoRAClassifier.__init__, source, kind)
    try:
        return {**settings, "lora": LoRAConfig.of(settings["lora"]).to_dict()}
    except TypeError as error:
        raise UserError(f"{kind}.version", f"{source}: written by another version of lora_pl: {error}") from None
    except LoRAError as error:
        raise UserError(f"{kind}.settings", f"{source}: model.lora.{error}") from None


def _require_eva(trainer: Trainer, lora: LoRAConfig) -> None:
    if trainer.datamodule is None:  # type: ignore[attr-defined]
        raise UserError("model.lora.init", "eva looks at the training data; give them as trainer.fit(datamodule=...)")
    if lora.distributes_ranks and isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise UserError(
            "model.lora.eva_rho",
            "spawned processes hand back weights, but not their ranks; take --trainer.strategy ddp, or eva_rho 1",
        )


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
