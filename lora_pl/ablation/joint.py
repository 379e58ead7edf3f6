"""Joint trials: several trials over one frozen encoder, trained together."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import lightning
import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn

from lora_pl.ablation.grid import Trial
from lora_pl.data.batches import Batch
from lora_pl.encoder.dropout import use_bulk_dropout
from lora_pl.lora import AdapterBank, LoRAConfig, remove_lora
from lora_pl.lora.state import below, copy_state
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.model.metrics import StageMetrics
from lora_pl.model.module import TaskModule
from lora_pl.model.optimizer import parameter_groups
from lora_pl.model.start import read_start
from lora_pl.model.training_loss import TrainingLoss
from lora_pl.storage.checkpoint import BASE_KEY, START_KEY, check_base


class JointTrials(TaskModule):
    """K LoRA trials in one forward: each with its own A, B, head, learning rate, clipping and metrics.

    The batches of all trials lie one after the other in one packed row; in the adapted layers each sentence goes
    through its own trial's adapter. The loss is the sum over trials, so that each trial has the gradients that it has
    alone; AdamW is elementwise, with each trial's learning rate on its own parameters.

    Args:
        like: A model with the settings that all trials share. It gives its base away and can't be used afterwards.
        trials: LoRA trials that are not `Trial.alone`, of any ranks, seeds, alphas, learning rates and targets.
    """

    def __init__(self, like: LoRAClassifier, trials: Sequence[Trial]) -> None:
        super().__init__()
        self.save_hyperparameters({**like.hparams, "nonfinite_loss": "stop"})  # a step is that of all trials
        self.task, self.base = like.task, like.base
        self.encoder = self.base.encoder.requires_grad_(False).train()
        remove_lora(self.encoder)
        self.bank = AdapterBank(self.encoder)
        self.heads, self.losses, self.metrics = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.step_losses = torch.empty(0)
        """(trials,): those of the last step."""
        own = [trial.model(like.hparams) for trial in trials]
        self.settings = [{**each, "lora": LoRAConfig.of(each["lora"]).to_dict()} for each in own]
        """Each trial's hyper-parameters, as its own `LoRAClassifier` has them."""
        start_from = like.hparams["start_from"]
        self.start = read_start(start_from, self.base) if start_from else None
        for trial, settings in zip(trials, self.settings, strict=True):
            self._draw(trial.seed, settings)
        use_bulk_dropout(self.encoder)  # the adapters' own

    def _draw(self, seed: int, settings: Mapping[str, Any]) -> None:
        """Add a trial as `fit --seed_everything SEED` draws it: the head, then A layer by layer."""
        seed_everything(seed, workers=True, verbose=False)
        head = self.base.new_head(settings["head"], self.task.outputs)
        taken = self.start.tensors(settings) if self.start else {}
        adapter, of_head = below("encoder.", taken), below("head.", taken)
        self.bank.add(str(len(self.heads)), self.base.resolve(LoRAConfig.of(settings["lora"])), adapter or None)
        if of_head:
            copy_state(head.state_dict(), of_head)
        self.heads.append(head)
        self.losses.append(TrainingLoss(self.task, settings))
        self.metrics.append(StageMetrics(self.task))

    def setup(self, stage: str) -> None:
        """As `TaskModule.setup`; balanced weights from each trial's own labels."""
        super().setup(stage)
        for loss, data in zip(self.losses, self.trainer.datamodule.trials_data, strict=True):  # type: ignore[attr-defined]
            cast(TrainingLoss, loss).take_weights(data)

    def stage_metrics(self) -> list[StageMetrics]:
        """Those of every trial."""
        return [cast(StageMetrics, metrics) for metrics in self.metrics]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Adapter and head of every trial, each with its rate."""
        groups = []
        for name, head, settings in zip(self.bank.names, self.heads, self.settings, strict=True):
            found = parameter_groups(self.bank.adapters(name), head, settings)
            groups += [{**group, "name": f"{name}/{group['name']}"} for group in found]
        return groups

    def training_step(self, batches: list[Batch], batch_idx: int) -> Tensor:
        """The sum of the trials' losses on their own batches."""
        owners = [name for name, batch in zip(self.bank.names, batches, strict=True) for _ in batch.lengths]
        row = _joined(batches).filled(self.base.tokenizer.pad_token_id)
        parts = torch.split(self._routed(owners, row), [len(batch) for batch in batches])
        losses = [
            self._measured(index, features, batch, "train")
            for index, (features, batch) in enumerate(zip(parts, batches, strict=True))
        ]
        self.step_losses = torch.stack(losses).detach()
        return torch.stack(losses).sum()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to every trial's loss and metrics."""
        for index, name in enumerate(self.bank.names):
            self._measured(index, self._routed([name] * len(batch), batch), batch, "val", dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Raise a UserError for logits that are inf or NaN; which trial is at fault shows when they run one by one."""
        self.check_finite("val")

    def _routed(self, owners: list[str], batch: Batch) -> Tensor:
        """(sentences, hidden): each sentence's feature by the adapter of its owner."""
        filler = [None] * (len(batch.segments) - len(owners))
        with self.bank.route([*owners, *filler], batch.segments):
            return self.base.features(batch)

    def _measured(self, index: int, features: Tensor, batch: Batch, stage: str, split: int = 0) -> Tensor:
        """A trial's loss on a batch, added to the trial's metrics."""
        with torch.autocast(self.device.type, enabled=False):
            logits = self.heads[index](features)
        loss: Tensor = (self.losses[index] if stage == "train" else self.task.loss)(logits, batch.labels)
        self.stage_metrics()[index].of(stage, split).update(logits, batch.labels, loss)
        return loss

    def epoch_metrics(self, index: int, stage: str) -> dict[str, float]:
        """A trial's losses and metrics by their logged names: `val/accuracy`, ..."""
        return {name: float(value) for name, value in self.stage_metrics()[index].compute(stage).items()}

    def clipped_together(self, optimizer: torch.optim.Optimizer) -> list[list[nn.Parameter]]:
        """Those of a trial."""
        heads = zip(self.bank.names, self.heads, strict=True)
        return [[*self.bank.parameters(name), *head.parameters()] for name, head in heads]

    def trial_state(self, index: int) -> dict[str, Tensor]:
        """What a trial has trained, as the `state_dict` of its own `LoRAClassifier`."""
        adapter = self.bank.state_dict(self.bank.names[index])
        state = {f"encoder.{key}": tensor for key, tensor in adapter.items()}
        return state | {f"head.{key}": tensor for key, tensor in self.heads[index].state_dict().items()}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What all trials have trained: `trial_state` by number, `0.head.weight`, ..."""
        states = {name: self.trial_state(index) for index, name in enumerate(self.bank.names)}
        return {f"{name}.{key}": tensor for name, state in states.items() for key, tensor in state.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The reverse of `state_dict`, always strict."""
        copy_state(self.state_dict(), state_dict)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the base's name and fingerprints."""
        checkpoint[BASE_KEY] = dict(self.base.fingerprints)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise a UserError, `checkpoint.base`, if the trials were trained on another base."""
        check_base(checkpoint, self.base.fingerprints)

    def trial_checkpoint(self, index: int, data: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint of one trial, for `LoRAClassifier.load_from_checkpoint` and the verbs."""
        return {
            "epoch": self.current_epoch,
            "global_step": self.global_step,
            "pytorch-lightning_version": lightning.__version__,
            "state_dict": {key: tensor.cpu() for key, tensor in self.trial_state(index).items()},
            "hyper_parameters": self.settings[index],
            "datamodule_hyper_parameters": data,
            BASE_KEY: dict(self.base.fingerprints),
            **({START_KEY: dict(self.start.record)} if self.start else {}),
        }


def _joined(batches: Sequence[Batch]) -> Batch:
    """Packed batches one after the other, as one packed batch."""
    ids, types = (
        torch.cat([getattr(batch, name)[:, : batch.tokens] for batch in batches], 1)  # without their filler
        for name in ("input_ids", "token_type_ids")
    )
    labels = torch.cat([batch.labels for batch in batches])
    starts = itertools.accumulate((batch.tokens for batch in batches), initial=0)
    pads = tuple(start + place for start, batch in zip(starts, batches, strict=False) for place in batch.pads)
    return Batch(ids, types, labels, tuple(length for batch in batches for length in batch.lengths), pads=pads)
