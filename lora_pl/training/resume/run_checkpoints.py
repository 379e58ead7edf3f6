"""The checkpoints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from lora_pl.storage.checkpoint import BEST, LAST, PREVIOUS, SUFFIX
from lora_pl.storage.write_whole import remove_unfinished


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt` of a run, by the task's own metric.

    It notes a new best after validation; `write` saves it, between two steps, so that it can be resumed exactly.
    """

    def __init__(self, folder: str | Path) -> None:
        # no version counter: what lies there is from the same run, before it was killed
        super().__init__(
            dirpath=folder, filename=BEST, mode="max", auto_insert_metric_name=False, enable_version_counter=False
        )
        self._noted: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the metric from the model's task."""
        self.monitor = pl_module.monitor  # type: ignore[assignment]
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score, in whichever folder the run lies now."""
        path = str(Path(str(self.dirpath)) / f"{BEST}{SUFFIX}")
        scores = list(state_dict["best_k_models"].values())
        self.current_score = state_dict.get("current_score")
        super().load_state_dict(
            {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": path if scores else "",
                "kth_best_model_path": path if scores else "",
                "best_k_models": {path: scores[0]} if scores else {},
            }
        )

    def write(self, trainer: Trainer) -> None:
        """Save the best that was noted since the last call."""
        if self._noted is not None:
            path, self._noted = self._noted, None
            super()._save_checkpoint(trainer, path)

    @property
    def is_noted(self) -> bool:
        """Whether `write` has something to save."""
        return self._noted is not None

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._noted = filepath
        self._last_global_step_saved = trainer.global_step


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, and the one before as `previous.ckpt` while the run goes on.

    Apart from `BestCheckpoint`, because ModelCheckpoint's `save_last` writes only where the best is written too, and
    a run without a new best would resume from long ago.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.last_model_path = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove what a killed run left half-written."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        if trainer.is_global_zero:
            for name in (BEST, LAST, PREVIOUS):
                remove_unfinished(self.folder / f"{name}{SUFFIX}")

    def write(self, trainer: Trainer) -> None:
        """Save."""
        path = self.folder / f"{LAST}{SUFFIX}"
        trainer.save_checkpoint(path, storage_options={"keep": str(self._previous)})
        self.last_model_path = str(path)

    def tidy(self, trainer: Trainer) -> None:
        """A run that is done keeps its last and its best."""
        if trainer.is_global_zero:
            self._previous.unlink(missing_ok=True)

    @property
    def _previous(self) -> Path:
        return self.folder / f"{PREVIOUS}{SUFFIX}"
