"""Several trials over one frozen encoder, trained together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import lightning
import torch
from lightning.pytorch import LightningDataModule, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lora_pl.ablation.grid import Trial
from lora_pl.data.batches import Batch
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.encoder.architectures import module_names
from lora_pl.lora import AdapterBank, LoRAConfig, adapter_state_dict
from lora_pl.model.answers import features_of
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.model.metrics import SplitMetrics
from lora_pl.model.optimizer import parameter_groups
from lora_pl.reporting import silence
from lora_pl.storage.checkpoint import BASE_KEY


class BrokenPackError(RuntimeError):
    """A trial's loss is not finite; its trials are to be run one after another, where each fails for itself."""


def trial_model(like: LoRAClassifier, trial: Trial) -> LoRAClassifier:
    """A trial's model at its start, the same as `fit --seed_everything SEED` makes it."""
    seed_everything(trial.seed, workers=True, verbose=False)
    lora = {**like.hparams["lora"], "r": trial.rank, "lora_alpha": trial.alpha, "target_modules": list(trial.targets)}
    return LoRAClassifier(**{**like.hparams, "lora": lora, "learning_rate": trial.learning_rate})


class PackedTrials(LoRAClassifier):
    """K LoRA trials in one forward: each with its own A, B, head, learning rate, clipping and metrics.

    The batches of all trials lie one after the other in one packed row; in the adapted layers each sentence goes
    through its own trial's adapter. The loss is the sum over trials, so that each trial's gradients are those that it
    has alone; AdamW works number by number, and each trial's numbers have a learning rate of their own.

    Args:
        like: A model whose settings all trials share, but for the trials' own.
        trials: LoRA trials, of any ranks, seeds, alphas, learning rates and targets.
    """

    def __init__(self, like: LoRAClassifier, trials: Sequence[Trial]) -> None:
        super().__init__(**{**like.hparams, "method": "head"})
        self.requires_grad_(False)
        self.trials = list(trials)
        self.bank = AdapterBank(self.encoder)
        self.heads, self.trial_metrics = nn.ModuleList(), nn.ModuleList()
        self.step_losses = torch.empty(0)
        """(trials,): those of the last step."""
        self.settings: list[dict[str, Any]] = []
        """Each trial's hyper-parameters, as its own `LoRAClassifier` has them."""
        for trial in trials:
            model = trial_model(like, trial)
            config = module_names(LoRAConfig.of(model.hparams["lora"]), self.encoder.config)
            self.bank.add(str(len(self.heads)), config, adapter_state_dict(model.encoder))
            self.heads.append(model.head)
            self.trial_metrics.append(model.metrics)
            self.settings.append(dict(model.hparams))

    def training_step(self, batches: list[Batch], batch_idx: int) -> Tensor:  # type: ignore[override]
        """The sum of the trials' losses on their own batches."""
        features = self._routed(
            [name for name, batch in zip(self.bank.names, batches, strict=True) for _ in batch.lengths], joined(batches)
        )
        parts = torch.split(features, [len(batch) for batch in batches])
        losses = [self._measured(index, *pair, "train/") for index, pair in enumerate(zip(parts, batches, strict=True))]
        self.step_losses = torch.stack(losses).detach()
        loss = torch.stack(losses).sum()
        if not torch.isfinite(loss):
            raise BrokenPackError(f"a loss is not finite at step {self.global_step}")
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to every trial's loss and metrics."""
        split = self._splits("val")[dataloader_idx]
        for index, name in enumerate(self.bank.names):
            self._measured(index, self._routed([name] * len(batch), batch), batch, f"val/{split}")

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips every trial's gradients by themselves."""
        if not gradient_clip_val:
            return
        by_value = gradient_clip_algorithm == "value"
        clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
        for index in range(len(self.trials)):
            clip(self._trained(index), gradient_clip_val)

    def trial_state(self, index: int) -> dict[str, Tensor]:
        """What a trial has trained, as the `state_dict` of its own `LoRAClassifier`."""
        adapter = self.bank.state_dict(self.bank.names[index])
        state = {f"encoder.{key}": tensor for key, tensor in adapter.items()}
        return state | {f"head.{key}": tensor for key, tensor in self.heads[index].state_dict().items()}

    def trial_checkpoint(self, index: int, data: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint of one trial, for `LoRAClassifier.load_from_checkpoint` and the verbs."""
        return {
            "epoch": self.current_epoch,
            "global_step": self.global_step,
            "pytorch-lightning_version": lightning.__version__,
            "state_dict": {key: tensor.cpu() for key, tensor in self.trial_state(index).items()},
            "hyper_parameters": self.settings[index],
            "datamodule_hyper_parameters": data,
            BASE_KEY: dict(self.base),
        }

    def _routed(self, names: list[str], batch: Batch) -> Tensor:
        """(sentences, hidden), each sentence's feature by the adapter that is named for it."""
        with self.bank.route(names, batch.lengths), self._half_precision():
            return features_of(batch, self.features).float()

    def _measured(self, index: int, features: Tensor, batch: Batch, split: str) -> Tensor:
        """A trial's loss on a batch, added to the trial's metrics."""
        with torch.autocast(self.device.type, enabled=False):
            logits = self.heads[index](features)
        loss, targets = self._loss(logits, batch.labels)
        self._of_trial(index, split).update(logits, targets, loss)
        return loss

    def _of_trial(self, index: int, split: str) -> SplitMetrics:
        return cast(SplitMetrics, cast(nn.ModuleDict, self.trial_metrics[index])[split])

    def _trained(self, index: int) -> list[nn.Parameter]:
        return [*self.bank.parameters(self.bank.names[index]), *self.heads[index].parameters()]

    def _parameter_groups(self) -> list[dict[str, Any]]:
        groups = []
        for name, head, settings in zip(self.bank.names, self.heads, self.settings, strict=True):
            rate = settings["learning_rate"]
            adapter = nn.ParameterList(self.bank.parameters(name))
            modules = {"encoder": (adapter, rate), "head": (head, settings["head_learning_rate"] or rate)}
            found = parameter_groups(modules, settings["weight_decay"], settings["decay_bias"])
            groups += [{**group, "name": f"{name}/{group['name']}"} for group in found]
        return groups

    def _reset_metrics(self, stage: str) -> None:
        for index in range(len(self.trials)):
            for split in self._splits(stage):
                self._of_trial(index, f"{stage}/{split}").reset()

    def epoch_metrics(self, index: int, stage: str) -> dict[str, float]:
        """A trial's loss and metrics over the stage's first split."""
        found = self._of_trial(index, f"{stage}/{self._splits(stage)[0]}").compute()
        return {name: float(value) for name, value in found.items()}

    def _log_metrics(self, stage: str) -> None:
        """Nothing here: `PackRecord` writes each trial's own log."""


class PackedData(LightningDataModule):
    """The data of K trials: K batches per step, each drawn as its trial alone draws it."""

    def __init__(self, like: SentenceDataModule, seeds: Sequence[int]) -> None:
        super().__init__()
        self.trials_data = [SentenceDataModule(**{**like.hparams, "seed": seed}) for seed in seeds]

    def setup(self, stage: str) -> None:
        """Load every trial's tokens."""
        with silence():
            for data in self.trials_data:
                data.trainer = self.trainer
                data.setup(stage)

    def train_dataloader(self) -> list[DataLoader[Batch]]:
        """A loader per trial, which Lightning draws from at once."""
        return [data.train_dataloader() for data in self.trials_data]

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """The validation split, the same for all trials."""
        return self.trials_data[0].val_dataloader()


def joined(batches: Sequence[Batch]) -> Batch:
    """Packed batches one after the other, as one packed batch."""
    ids, types = (torch.cat([getattr(batch, name) for batch in batches], 1) for name in ("input_ids", "token_type_ids"))
    labels = torch.cat([batch.labels for batch in batches])
    return Batch(ids, types, labels, tuple(_lengths(batches)))


def _lengths(batches: Sequence[Batch]) -> Iterator[int]:
    for batch in batches:
        yield from batch.lengths
