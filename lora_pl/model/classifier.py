"""The LightningModule: an encoder with LoRA and a head."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor, nn

from lora_pl.data.batches import Batch
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.errors import UserError
from lora_pl.lora import LoRAConfig, LoRAError, eva_init, eva_matrices, lora_layers, mark_only_lora_as_trainable
from lora_pl.model.eva import input_moments
from lora_pl.model.finite_steps import Loss
from lora_pl.model.graphed_training import GraphedTraining
from lora_pl.model.metrics import StageMetrics
from lora_pl.model.module import TaskModule
from lora_pl.model.optimizer import parameter_groups
from lora_pl.model.plain import PlainClassifier
from lora_pl.reporting import say


class LoRAClassifier(PlainClassifier, TaskModule):  # type: ignore[misc]  # its own load_from_checkpoint
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
            or float32 without a trainer; int8 quantizes linear layers, on a CPU with AVX512_VNNI. Adapters, head, norms
            and optimizer are always fp32.
        graphs: Whether the encoder is trained by CUDA graphs, on a GPU: packed rows of sentences of at most 128 tokens,
            in up to 64 shapes. Other rows, and all evaluation, are computed without.
        nonfinite_loss: Whether a loss or gradients that are inf or NaN stop the run, at the next log at the latest, or
            skip the batch or step.
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

    def _keep(self, settings: dict[str, Any]) -> None:
        self.save_hyperparameters(settings)
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

    def stage_metrics(self) -> list[StageMetrics]:
        """Those of the one head."""
        return [self.metrics]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Encoder and head, each with its rate; what a subclass adds to `trained_beside` goes with the head."""
        beside = [part for part in self.trained_beside if isinstance(part, nn.Module) and part is not self.encoder]
        return parameter_groups(self.encoder, nn.ModuleList(beside), self.hparams)

    def configure_callbacks(self) -> list[Callback]:
        """As `TaskModule.configure_callbacks`, and `GraphedTraining` if there are to be graphs."""
        return [*super().configure_callbacks(), *([GraphedTraining()] if self.hparams["graphs"] else [])]

    def unfreeze(self) -> LoRAClassifier:
        """Let adapters and head be trained again, after `freeze`."""
        mark_only_lora_as_trainable(self, also=self.trained_beside)
        return self.train()

    def setup(self, stage: str) -> None:
        """As `TaskModule.setup`; for `fit` balanced weights, and A of a new run with init eva, from the training data.

        A model in eval mode, as `load_from_checkpoint` gives it, is trained in train mode.

        Lightning does not say yet whether `fit` has a `ckpt_path`; the checkpoint's A and ranks are loaded over these.

        Raises:
            UserError: `model.class_weights`: a class has no example; `model.lora.eva_batches`: the batches have too few
                tokens; `model.lora.init`, `model.lora.eva_rho`: the trainer has no data module, or would not hand back
                the ranks; `model`: what would be trained is not what checkpoints hold.
        """
        super().setup(stage)
        if stage != "fit":
            return
        self._require_saved()
        if not self.training:
            self.train()
        self.loss.take_weights(self.trainer.datamodule)  # type: ignore[attr-defined]
        if self.awaits_data:
            self._start_from_data()

    def _require_saved(self) -> None:
        saved = {tensor.data_ptr() for tensor in self.state_dict().values()}
        trained = ((name, tensor) for name, tensor in self.named_parameters() if tensor.requires_grad)
        lost = [name for name, tensor in trained if tensor.data_ptr() not in saved]
        if lost:
            raise UserError(
                "model", f"no checkpoint would hold {lost[0]}; freeze it, or add its module to trained_beside"
            )
        merged = [name for name, layer in lora_layers(self).items() if layer.merged]
        if merged:
            raise UserError("model", f"{merged[0]} is merged, and a merged adapter learns nothing; unmerge its layer")

    def _start_from_data(self) -> None:
        lora = LoRAConfig.of(self.hparams["lora"])
        resolved = self.base.resolve(lora)
        _require_eva(self.trainer, lora)
        self.to(self.trainer.strategy.root_device)
        try:
            moments = input_moments(self.base, self.trainer.datamodule.train_dataloader(), lora.eva_batches)  # type: ignore[attr-defined]
            matrices = eva_matrices(resolved, moments)
        except LoRAError as error:
            raise UserError(f"model.lora.{error.key}", error.message) from None
        # every process has seen batches of its own; the first one's A holds for all
        ranked = eva_init(self.encoder, resolved, self.trainer.strategy.broadcast(matrices))
        if ranked != resolved:
            self.hparams["lora"] = lora.with_patterns_of(ranked).to_dict()
        self.awaits_data = False
        ranks = [len(matrix) for matrix in matrices.values()]
        say(f"eva: A from {max(moments.rows.values()):,} tokens; ranks {min(ranks)} to {max(ranks)}")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """The loss of a batch; None if it is inf or NaN and such batches are skipped."""
        logits = self(batch)
        loss: Tensor = self.loss(logits, batch.labels)
        if self.hparams["nonfinite_loss"] == "skip" and not math.isfinite(loss.item()):
            found = Loss(self.global_step, self.current_epoch, batch_idx, loss)
            say(f"{found.told()}; the batch is skipped")
            return None
        self.metrics.of("train").update(logits, batch.labels, loss)
        bar = self.trainer.progress_bar_callback
        # for a bar Lightning reads the loss at every step; the run's own takes it when it is logged
        self.log(
            "train/loss", loss, prog_bar=bar is not None and not hasattr(bar, "logged_loss"), batch_size=len(batch)
        )
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Add a batch to the split's loss and metrics; its logits, (batch, outputs)."""
        return self._evaluate(batch, "val", dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """As `validation_step`."""
        return self._evaluate(batch, "test", dataloader_idx)

    def _evaluate(self, batch: Batch, stage: str, split: int) -> Tensor:
        logits: Tensor = self(batch)
        loss = self.task.loss(logits, batch.labels)
        self.metrics.of(stage, split).update(logits, batch.labels, loss, batch.rows)
        return logits

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


def _require_eva(trainer: Trainer, lora: LoRAConfig) -> None:
    if trainer.datamodule is None:  # type: ignore[attr-defined]
        raise UserError("model.lora.init", "eva looks at the training data; give them as trainer.fit(datamodule=...)")
    if lora.distributes_ranks and isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise UserError(
            "model.lora.eva_rho",
            "spawned processes hand back weights, but not their ranks; take --trainer.strategy ddp, or eva_rho 1",
        )
