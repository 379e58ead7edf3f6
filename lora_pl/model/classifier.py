"""The LightningModule: an encoder with LoRA, a head, one step for all stages."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F

from lora_pl.data.batches import BATCH_TOKENS, Batch, Batching, batches_of_like_length
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.data.tasks import CUSTOM, Task, get_task
from lora_pl.data.texts import Text
from lora_pl.data.tokens import tokenize
from lora_pl.encoder import EMBEDDED
from lora_pl.encoder.dtype import BaseDtype, cast_frozen, resolve_dtype
from lora_pl.encoder.features import FirstTokenFeatures
from lora_pl.encoder.fingerprint import base_fingerprints
from lora_pl.encoder.head import HeadKind, make_head, needs_pooler
from lora_pl.encoder.loading import load_config, load_encoder, load_tokenizer, max_tokens, takes_packed_rows
from lora_pl.encoder.source import canonical_name
from lora_pl.encoder.targets import module_names
from lora_pl.errors import UserError
from lora_pl.lora import (
    LoRAConfig,
    adapter_state_dict,
    inject_lora,
    load_adapter_state_dict,
    lora_layers,
    mark_only_lora_as_trainable,
    merged_lora,
)
from lora_pl.model.answers import Prediction, as_columns, as_predictions, evaluating, features_of, in_order
from lora_pl.model.metrics import SplitMetrics
from lora_pl.model.optimizer import parameter_groups
from lora_pl.model.schedule import Schedule, make_schedule
from lora_pl.reporting import say
from lora_pl.storage.checkpoint import BASE_KEY, check_base, check_options, check_settings, read_checkpoint

Method = Literal["lora", "head", "full"]
STAGES = ("train", "val", "test")
MERGED_FROM = 256
"""Texts from which on merging pays in `predict`."""


class LoRAClassifier(LightningModule):
    """A pretrained encoder with LoRA on chosen linear layers and a head on the first token's feature.

    Example:
        >>> model = LoRAClassifier.load_from_checkpoint("checkpoints/demo/best.ckpt")  # doctest: +SKIP
        >>> model.predict(["This movie was absolutely trash!"])  # doctest: +SKIP
        [{'label': 'negative', 'score': 0.99, 'probabilities': {'negative': 0.99, 'positive': 0.01}}]

    Args:
        encoder: A hub name, a folder, or package://NAME/PATH (a folder inside an installed package).
        task: A GLUE task, or custom with label_names.
        label_names: The classes in the order of their ids; by default the task's.
        pairs: Whether an example is two texts; by default as the task says.
        max_length: The longest sentence in tokens that `predict` doesn't cut.
        lora: Rank, alpha, dropout, targets and initialization.
        method: What is trained beside the head: lora (the adapters), head (nothing), full (the whole encoder).
        head: linear (on the first token's feature), or architecture (the one Transformers gives this architecture).
        dropout: The encoder's, on hidden states and attention, while training; by default its configuration's.
        base_dtype: What the frozen weights are kept in; auto is what the trainer's precision computes in (bfloat16 in
            bf16-mixed), and float32 without a trainer. Adapters, head, norms and optimizer are fp32 in any case.
        nonfinite_loss: Whether a loss that is infinite or no number stops the run or skips the batch.
        learning_rate: AdamW's, at the schedule's height.
        head_learning_rate: The head's own; by default learning_rate.
        weight_decay: AdamW's, on all that is trained.
        decay_bias: Whether weight_decay applies to biases and norms too.
        schedule: constant or linear (to zero at the last step).
        warmup_ratio: The share of all steps over which the learning rate rises from zero.
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
        head: HeadKind = "linear",
        dropout: float | None = None,
        base_dtype: BaseDtype = "auto",
        nonfinite_loss: Literal["stop", "skip"] = "stop",
        learning_rate: float = 1e-4,
        head_learning_rate: float | None = None,
        weight_decay: float = 0.01,
        decay_bias: bool = True,
        schedule: Schedule = "constant",
        warmup_ratio: float = 0.0,
    ) -> None:
        super().__init__()
        _require_rates(learning_rate, head_learning_rate, weight_decay, warmup_ratio, dropout)
        lora = LoRAConfig.of(lora)
        self.task = get_task(task)
        self.label_names = list(label_names if label_names is not None else self.task.labels)
        _require_label_names(self.task, self.label_names)
        self.pairs = len(self.task.columns) > 1 if pairs is None else pairs
        # primitive values only, so that checkpoints load with weights_only=True
        self.save_hyperparameters(
            {
                "encoder": canonical_name(encoder),
                "task": task,
                "label_names": self.label_names,
                "pairs": self.pairs,
                "max_length": max_length,
                "lora": lora.to_dict(),
                "method": method,
                "head": head,
                "dropout": dropout,
                "base_dtype": base_dtype,
                "nonfinite_loss": nonfinite_loss,
                "learning_rate": learning_rate,
                "head_learning_rate": head_learning_rate,
                "weight_decay": weight_decay,
                "decay_bias": decay_bias,
                "schedule": schedule,
                "warmup_ratio": warmup_ratio,
            }
        )
        config = load_config(encoder)
        self.predict_batch_tokens = BATCH_TOKENS
        self.predict_batching: Batching = "packed" if takes_packed_rows(config) else "padded"
        self.max_length = min(max_length, max_tokens(config))
        self.tokenizer = load_tokenizer(encoder)
        self.encoder = load_encoder(encoder, with_pooler=needs_pooler(head, config), dropout=dropout)
        self.head = make_head(head, self.encoder, len(self.label_names) or 1)
        self.base = base_fingerprints(encoder, self.encoder, self.tokenizer)
        self.adapted = inject_lora(self.encoder, module_names(lora, config)) if method == "lora" else []
        mark_only_lora_as_trainable(self, also=self.trained_modules)
        self.features = FirstTokenFeatures(self.encoder)
        self.base_dtype = torch.float32
        if base_dtype != "auto":
            self._cast_base(resolve_dtype(base_dtype, ""))
        keys = [f"{stage}/{split}" for stage in STAGES for split in self._splits(stage)]
        self.metrics = nn.ModuleDict({key: SplitMetrics(self.task, len(self.label_names)) for key in keys})

    def _splits(self, stage: str) -> list[str]:
        return [""] if stage == "train" else list(self.task.validation)

    def _metrics(self, stage: str, split: str) -> SplitMetrics:
        return cast(SplitMetrics, self.metrics[f"{stage}/{split}"])

    def setup(self, stage: str) -> None:
        """Convert the frozen base to the type that the trainer computes in."""
        if self.hparams["nonfinite_loss"] == "skip" and self.trainer.world_size > 1:
            raise UserError("model.nonfinite_loss: skip works in one process only; take stop, or one device")
        if stage != "predict":  # which merges first, in full precision
            self._cast_base(resolve_dtype(self.hparams["base_dtype"], str(self.trainer.precision)))

    def on_predict_start(self) -> None:
        """Merge, then convert: W0 + delta_weight() is rounded once."""
        with torch.inference_mode(False):
            for layer in lora_layers(self.encoder).values():
                layer.merge()
            self._cast_base(resolve_dtype(self.hparams["base_dtype"], str(self.trainer.precision)))

    def on_predict_end(self) -> None:
        """Unmerge."""
        with torch.inference_mode(False):
            for layer in lora_layers(self.encoder).values():
                layer.unmerge()
            self._cast_base(self.base_dtype)

    def _cast_base(self, dtype: torch.dtype) -> None:
        # nothing is frozen in full fine-tuning, and what was rounded once stays so
        if self.hparams["method"] != "full" and dtype != torch.float32:
            cast_frozen(self.encoder, dtype)
            self.base_dtype = dtype

    @property
    def computed_dtype(self) -> torch.dtype:
        """What the encoder's products are computed in while the trainer runs."""
        of_precision = resolve_dtype("auto", str(self.trainer.precision))
        return of_precision if self.base_dtype == torch.float32 else self.base_dtype

    @property
    def trained_modules(self) -> tuple[nn.Module, ...]:
        """The modules that are trained as a whole, beside the adapters."""
        return (self.encoder, self.head) if self.hparams["method"] == "full" else (self.head,)

    @property
    def monitor(self) -> str:
        """The logged metric that chooses the best checkpoint; higher is better."""
        return f"val/{self.task.metrics[0]}"

    def forward(self, batch: Batch) -> Tensor:
        """Logits in fp32, (batch, classes), or (batch, 1) for a regression."""
        with self._half_precision():
            features = features_of(batch, self.features)  # (batch, hidden)
        with torch.autocast(self.device.type, enabled=False):
            logits: Tensor = self.head(features.float())
        return logits

    def _half_precision(self) -> AbstractContextManager[Any]:
        """Autocast to the frozen base's type where that is a half; else what the caller has set holds."""
        if self.base_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.base_dtype)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """The loss of a batch; None where it is not finite and such batches are skipped."""
        loss = self._step(batch, "train", "")
        if not torch.isfinite(loss):
            self._nonfinite(loss, batch_idx)
            return None
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def _nonfinite(self, loss: Tensor, batch_idx: int) -> None:
        where = f"the loss is {loss.item()} at step {self.global_step} (epoch {self.current_epoch}, batch {batch_idx})"
        if self.hparams["nonfinite_loss"] == "skip":
            say(f"{where}; the batch is skipped")
            return
        paths = [getattr(callback, "last_model_path", "") for callback in self.trainer.checkpoint_callbacks]
        good = next((path for path in reversed(paths) if path), "none yet")
        raise UserError(
            f"{where}; the last good checkpoint: {good}; take a lower learning rate, or --model.nonfinite_loss skip"
        )

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to the split's loss and metrics."""
        self._step(batch, "val", self._splits("val")[dataloader_idx])

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As `validation_step`."""
        self._step(batch, "test", self._splits("test")[dataloader_idx])

    def predict_step(self, texts: Sequence[Text], batch_idx: int = 0) -> list[Prediction]:
        """`predict` without its care for the mode and for merging, which the trainer's hooks take."""
        return self._predictions(texts, self.predict_batch_tokens)

    @torch.inference_mode()
    def predict(self, texts: Sequence[Text], batch_tokens: int = BATCH_TOKENS) -> list[Prediction]:
        """What the model says of each text, in their order.

        Many texts are asked with the adapters merged where the base is fp32, so that nothing is rounded.

        Args:
            texts: Sentences, or pairs of sentences for a task on pairs.
            batch_tokens: Tokens per forward pass; batches are made of like lengths.

        Returns:
            A dict per text: the label, its probability as `score`, and every label's probability; for a regression
            the `score` alone.
        """
        if isinstance(texts, str):
            raise UserError(f"predict: expected a list of texts, got one string; write predict([{texts[:20]!r}])")
        merges = len(texts) >= MERGED_FROM and self.base_dtype == torch.float32
        with evaluating(self), merged_lora(self.encoder) if merges else nullcontext():
            return self._predictions(texts, batch_tokens)

    @torch.inference_mode()
    def logits(self, texts: Sequence[Text]) -> Tensor:
        """(texts, outputs), fp32, on the CPU: what `predict` makes its answers of, with the adapters as they are."""
        with evaluating(self):
            return self._logits(as_columns(texts, self.pairs), self.predict_batch_tokens)

    def configure_optimizers(self) -> Any:
        """AdamW on what is trained, and the schedule per optimizer step."""
        optimizer = torch.optim.AdamW(self._parameter_groups())
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps) and self.hparams["schedule"] == "linear":
            raise UserError("schedule: linear needs an end; give --trainer.max_epochs or --trainer.max_steps")
        warmup = 0 if math.isinf(steps) else round(self.hparams["warmup_ratio"] * steps)
        total = 0 if math.isinf(steps) else int(steps)
        schedule = make_schedule(optimizer, self.hparams["schedule"], warmup, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What is trained, and nothing else: adapters and head (`method: full`: encoder and head)."""
        return adapter_state_dict(self, also=self.trained_modules)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The reverse of `state_dict`, always strict; a LoRAError lists every key that does not fit."""
        load_adapter_state_dict(self, state_dict, also=self.trained_modules)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the base's name and fingerprints."""
        checkpoint[BASE_KEY] = dict(self.base)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of other settings or of another base."""
        check_settings(checkpoint, self.hparams)
        check_base(checkpoint, self.base)

    @classmethod
    def for_data(cls, data: SentenceDataModule, **settings: Any) -> LoRAClassifier:
        """The model that `lora_pl fit` makes for these data: its random numbers are drawn by the data's seed.

        Args:
            data: Determines encoder, task, label_names, pairs and max_length.
            settings: The constructor's other arguments.
        """
        seed_everything(data.seed, workers=True, verbose=False)
        linked = {
            "encoder": data.encoder,
            "task": data.task.name,
            "label_names": data.label_names,
            "pairs": len(data.text_columns) > 1,
            "max_length": data.max_length,
        }
        return cls(**{**settings, **linked})

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = "cpu", **overrides: Any
    ) -> LoRAClassifier:
        """The model of a checkpoint, on `map_location`, in eval mode.

        Args:
            checkpoint_path: `best.ckpt` or `last.ckpt` of a run.
            map_location: The device.
            overrides: Constructor arguments to change, such as `encoder` where the base has moved.

        Raises:
            UserError: the file is no checkpoint of lora_pl, or the base is not the one that it was trained on.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        check_options(checkpoint, inspect.signature(cls).parameters)
        model = cls(**{**checkpoint["hyper_parameters"], **overrides})
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        return model.to(map_location).eval()

    def _step(self, batch: Batch, stage: str, split: str) -> Tensor:
        logits = self(batch)
        loss, targets = self._loss(logits, batch.labels)
        if stage != "train" or torch.isfinite(loss):
            self._metrics(stage, split).update(logits, targets, loss)
        return loss

    def _loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error or cross-entropy, and the targets as it takes them."""
        if self.task.is_regression:
            return F.mse_loss(logits.squeeze(-1), labels), labels
        return F.cross_entropy(logits, labels.long()), labels.long()

    def on_train_epoch_start(self) -> None:
        """Starts the epoch's metrics."""
        self._reset_metrics("train")

    def on_validation_epoch_start(self) -> None:
        """As `on_train_epoch_start`."""
        self._reset_metrics("val")

    def on_test_epoch_start(self) -> None:
        """As `on_train_epoch_start`."""
        self._reset_metrics("test")

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's training metrics."""
        self._log_metrics("train")

    def on_validation_epoch_end(self) -> None:
        """Logs the exact metrics of every validation split."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        self._log_metrics("test")

    def _reset_metrics(self, stage: str) -> None:
        # at the start: sums that were reset in another run's inference mode can't be added to in this one
        for split in self._splits(stage):
            self._metrics(stage, split).reset()

    def _log_metrics(self, stage: str) -> None:
        for index, split in enumerate(self._splits(stage)):
            if not self._metrics(stage, split).seen:  # own files have one split for MNLI's two
                continue
            for name, value in self._metrics(stage, split).compute().items():
                if (stage, name) != ("train", "loss"):  # logged by step
                    self.log(
                        f"{stage}/{name}{_suffix(split, index)}", value, prog_bar=stage == "val" and name != "loss"
                    )

    def _parameter_groups(self) -> list[dict[str, Any]]:
        rate = self.hparams["learning_rate"]
        modules = {"encoder": (self.encoder, rate), "head": (self.head, self.hparams["head_learning_rate"] or rate)}
        return parameter_groups(modules, self.hparams["weight_decay"], self.hparams["decay_bias"])

    def _predictions(self, texts: Sequence[Text], batch_tokens: int) -> list[Prediction]:
        if not len(texts):
            return []
        return as_predictions(self.task, self.label_names, self._logits(as_columns(texts, self.pairs), batch_tokens))

    def _logits(self, texts: Sequence[Sequence[str]], batch_tokens: int) -> Tensor:
        """(texts, outputs) on the CPU in the texts' order, computed in batches of like lengths."""
        tokens = tokenize(self.tokenizer, texts, self.max_length)
        batches = batches_of_like_length(tokens, batch_tokens, self.predict_batching, self.tokenizer.pad_token_id)
        return in_order((self(batch.to(self.device)), indices) for batch, indices in batches)


def _suffix(split: str, index: int) -> str:
    """Nothing for a task's first split, `_mismatched` for MNLI's second."""
    return f"_{split.removeprefix('validation_')}" if index else ""


def _require_label_names(task: Task, names: Sequence[str]) -> None:
    expected = len(task.labels) if task.name != CUSTOM else max(2, len(names))
    if len(names) != expected or len(set(names)) != len(names):
        what = "at least two classes" if task.name == CUSTOM else f"{expected} classes"
        raise UserError(f"label_names: expected {what} for the task {task.name}, all different, got {list(names)}")


def _require_rates(rate: float, head_rate: float | None, decay: float, warmup: float, dropout: float | None) -> None:
    for name, holds, expected, given in (
        ("learning_rate", rate > 0, "a number > 0", rate),
        ("head_learning_rate", head_rate is None or head_rate > 0, "a number > 0", head_rate),
        ("weight_decay", decay >= 0, "a number >= 0", decay),
        ("warmup_ratio", 0 <= warmup < 1, "a share of the steps in [0, 1)", warmup),
        ("dropout", dropout is None or 0 <= dropout < 1, "a probability in [0, 1)", dropout),
    ):
        if not holds:
            raise UserError(f"model.{name}: expected {expected}, got {given}")
