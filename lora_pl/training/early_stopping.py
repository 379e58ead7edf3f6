"""Early stopping by the model's own metric."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from lora_pl.errors import UserError
from lora_pl.model.monitor import mode_of


class PatientStopping(EarlyStopping):
    """Ends a run after `patience` validations in a row without a new best of the metric that chooses `best.ckpt`.

    A metric that is NaN is no new best.

    Raises:
        UserError: `early_stopping_patience`: it is below 1.
    """

    def __init__(self, patience: int) -> None:
        if patience < 1:
            raise UserError("early_stopping_patience", f"expected at least 1 validation, got {patience}")
        super().__init__("", patience=patience)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the metric and its direction from the model."""
        monitor = str(pl_module.monitor)
        super().__init__(monitor, patience=self.patience, mode=mode_of(monitor), check_finite=False)
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the saved count, but this run's patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})
