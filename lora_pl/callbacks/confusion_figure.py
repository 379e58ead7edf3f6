"""The confusion matrix of the best checkpoint, in TensorBoard and beside the checkpoint."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from lora_pl.callbacks.confusion_image import Pixels, confusion_image
from lora_pl.model.class_scores import MOST_SHOWN, ClassScores
from lora_pl.model.metrics import suffix
from lora_pl.model.module import TaskModule
from lora_pl.storage.write_whole import write_whole

NAME = "confusion"


class ConfusionFigure(Callback):
    """Draws the confusion matrix of each validation that is the best so far: `val/confusion` and `confusion.png`.

    Of classifications with at most 50 classes, where matplotlib is installed (the extra `ablation`).
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw it, by the first process alone."""
        if trainer.sanity_checking or not isinstance(pl_module, TaskModule):
            return
        best = _best(trainer, pl_module.monitor)
        if best is None or pl_module.task.outputs > MOST_SHOWN or find_spec("matplotlib") is None:
            return
        for number, (split, metrics) in enumerate(pl_module.stage_metrics()[0].evaluated("val").items()):
            scores = metrics.class_scores()
            if scores is not None and not metrics.broken and trainer.is_global_zero:
                image = confusion_image(scores, pl_module.task.labels, _title(split, trainer.global_step, scores))
                self._show(trainer, f"{NAME}{suffix(number, split)}", image, Path(str(best.dirpath)))

    def _show(self, trainer: Trainer, name: str, image: Pixels, folder: Path) -> None:
        from matplotlib.image import imsave

        if isinstance(trainer.logger, TensorBoardLogger):
            # the step of Lightning's own points of this validation
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            trainer.logger.experiment.add_image(f"val/{name}", image, step, dataformats="HWC")
        write_whole(folder / f"{name}.png", lambda beside: imsave(beside, image, format="png"))


def _best(trainer: Trainer, monitor: str) -> ModelCheckpoint | None:
    """The callback that will save this validation's model as the best so far, if it is."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor == monitor:
            return callback if callback.check_monitor_top_k(trainer, trainer.callback_metrics.get(monitor)) else None
    return None


def _title(split: str, step: int, scores: ClassScores) -> str:
    return f"{split}, step {step:,}\naccuracy {scores.accuracy:.3f}, macro F1 {scores.macro.f1:.3f}"
