"""Training by CUDA graphs."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.errors import UserError
from lora_pl.model.base import Base


class GraphedTraining(Callback):
    """Lets the model's base use graphs while a run trains; they read its weights where they lie then.

    Raises:
        UserError: `model.graphs`: batches are padded, or see `Base.use_graphs`.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, SentenceDataModule) and data.batching == "padded":
            raise UserError("model.graphs", "graphs are for packed rows, and data.batching is padded; leave it out")
        _base(pl_module).use_graphs()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Free them."""
        _base(pl_module).graphs = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Free them."""
        _base(pl_module).graphs = None


def _base(pl_module: LightningModule) -> Base:
    base = pl_module.base
    assert isinstance(base, Base)
    return base
