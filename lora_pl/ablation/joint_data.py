"""The data of joint trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lora_pl.data.batches import Batch
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.errors import UserError
from lora_pl.reporting import silence


class JointData(LightningDataModule):
    """The data of K trials: K batches per step, each drawn as its trial alone draws it."""

    def __init__(self, like: SentenceDataModule, seeds: Sequence[int]) -> None:
        super().__init__()
        self.trials_data = [with_seed(like, seed) for seed in seeds]

    def setup(self, stage: str) -> None:
        """Load every trial's tokens."""
        with silence():
            for data in self.trials_data:
                require_packed(data)
                data.trainer = self.trainer
                data.take_read(self.trials_data[0])
                data.setup(stage)

    def fingerprints(self) -> dict[str, str]:
        """Those of every trial's tokens and labels, by split and number."""
        return {
            f"{split} {number}": fingerprint
            for number, data in enumerate(self.trials_data)
            for split, fingerprint in data.fingerprints().items()
        }

    @property
    def order(self) -> str:
        """Of the sentences; see `SentenceDataModule`."""
        return self.trials_data[0].order

    @property
    def fills(self) -> bool:
        """Whether rows have filler; `training_step` gives the joint row its own."""
        return self.trials_data[0].fills

    def start_at(self, *position: Any) -> None:
        """As `SentenceDataModule.start_at`, for every trial."""
        for data in self.trials_data:
            data.start_at(*position)

    def train_dataloader(self) -> list[DataLoader[Batch]]:
        """A loader per trial, which Lightning draws from at once."""
        return [data.train_dataloader() for data in self.trials_data]

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """The validation split, the same for all trials."""
        return self.trials_data[0].val_dataloader()


def with_seed(data: SentenceDataModule, seed: int) -> SentenceDataModule:
    """The same data, drawn by another seed; what has been read of their classes is not read again."""
    drawn = SentenceDataModule(**{**data.hparams, "seed": seed})
    drawn.label_names = data.label_names
    return drawn


def require_packed(data: SentenceDataModule) -> None:
    """Raise a UserError, `pack`, if the data or their encoder make no packed batches, as joint trials need them."""
    if data.batching != "packed":
        raise UserError(
            "pack", f"joint trials need packed batches, and those of {data.encoder} are padded; take --pack 1"
        )
