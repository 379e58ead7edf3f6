"""The LightningDataModule: the sentences of one task."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler

from lora_pl.data.batches import Batch, TokenDataset
from lora_pl.data.samplers import ExactBatches, RandomBatches, SameBatches, SummedSeedBatches
from lora_pl.data.sentence_data import SentenceData
from lora_pl.data.sources import TEST, TRAIN
from lora_pl.errors import UserError
from lora_pl.reporting import say

ORDERS = {"hashed": RandomBatches, "summed": SummedSeedBatches}
"""How the random batches follow from seed and epoch, as checkpoints name it."""


class SentenceDataModule(SentenceData, LightningDataModule):
    """`SentenceData` for Lightning's Trainer: sentences are tokenized once, training draws random batches.

    Its arguments are those of `SentenceData`.
    """

    def _keep(self, settings: dict[str, Any]) -> None:
        # logger=False: the model logs the settings that both share
        self.save_hyperparameters(settings, logger=False)
        self.start_at(0, 0)

    def __str__(self) -> str:
        """Short, as an error may quote it; Lightning's would make every loader."""
        return f"{type(self).__name__}(task={self.task.name!r})"

    def prepare_data(self) -> None:
        """Read and tokenize the splits into the cache; one process per machine does this."""
        self.setup((self.trainer and self.trainer.state.fn) or "fit")

    def setup(self, stage: str) -> None:
        """Load the tokens of the stage's splits."""
        if stage == "predict":
            return
        for split in [*([TRAIN] if stage == "fit" else []), *self.labelled_splits(stage)]:
            if split not in self._tokens:
                self._tokens[split] = self._tokenized(split)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Random batches, the same in each epoch under Lightning's overfit_batches."""
        data, size = self._dataset(TRAIN), self.hparams["batch_size"]
        order = SameBatches if self.trainer and self.trainer.overfit_batches else ORDERS[self.order]  # type: ignore[attr-defined]
        return self._loader(data, order(data, size, self.seed, *self._replicas(), self._start))

    def start_at(self, epoch: int, batch: int, order: str = "hashed", fills: bool = True) -> None:
        """Start the next training in `epoch`, after `batch` of its batches, in one of `ORDERS`, with or without filler
        in its rows (`Batch.filled`), which changes what dropout draws."""
        self._start, self.order, self.fills = (epoch, batch), order, fills

    def teardown(self, stage: str) -> None:
        """Start the next training at its first batch."""
        self.start_at(0, 0)

    def fingerprints(self) -> dict[str, str]:
        """Those of tokens and labels, by split, of the splits that are set up."""
        return {split: tokens.fingerprint for split, tokens in self._tokens.items()}

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """A loader per labelled split, every sentence once."""
        return self._exact_loaders("validate")

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """As `val_dataloader`."""
        why = "" if self.own or self.held_out else " (the labels of GLUE tests are not public)"
        say(f"test: on the labelled {' and '.join(self.labelled_splits('test'))} split{why}")
        return self._exact_loaders("test")

    def predict_dataloader(self) -> NoReturn:
        """Raise a UserError, `predict`: the data's texts have labels."""
        raise UserError("predict", "a data module has no texts to predict; call model.predict(texts)")

    def _exact_loaders(self, stage: str) -> list[DataLoader[Batch]]:
        return [
            self._loader(data, ExactBatches(data, self.eval_batch_tokens, *self._replicas()))
            for data in map(self._dataset, self.labelled_splits(stage))
        ]

    def _dataset(self, split: str) -> TokenDataset:
        if split not in self._tokens:
            stage = TEST if split == TEST else "fit"
            raise UserError("data", f'the {split} sentences are not read yet; call setup("{stage}") first')
        return TokenDataset(self._tokens[split], self.batching, self.tokenizer.pad_token_id, self.fills)

    def _loader(self, data: TokenDataset, sampler: DistributedSampler[list[int]]) -> DataLoader[Batch]:
        # batch_size None: the sampler's lists are the batches; a generator of its own, because every loader draws a
        # seed for workers, here unused, which would change the run's random numbers
        return DataLoader(data, batch_size=None, sampler=sampler, generator=torch.Generator())

    def _replicas(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
