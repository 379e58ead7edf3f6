"""The confusion matrix of the best checkpoint, in TensorBoard and beside the checkpoint."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lora_pl.callbacks.best import best_keeper
from lora_pl.callbacks.confusion_image import Pixels, confusion_image
from lora_pl.callbacks.tensorboard import tensorboard_loggers
from lora_pl.model.class_scores import MOST_SHOWN, ConfusionScores
from lora_pl.model.module import TaskModule
from lora_pl.model.monitor import suffix
from lora_pl.storage.write_whole import recover, write_whole


class ConfusionFigure(Callback):
    """Draws the confusion matrix of each validation that is the best so far: `val/confusion` and `confusion.png`.

    Of classifications with one label per text and at most 50 classes, where matplotlib is installed (the extra
    `ablation`).
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove partial files of a killed run."""
        best = best_keeper(trainer, pl_module)
        if best is not None and trainer.is_global_zero:
            for number, split in enumerate(pl_module.task.validation):  # type: ignore[union-attr,arg-type]
                recover(_path(best, number, split))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw it if it is due, by the first process alone."""
        best = best_keeper(trainer, pl_module)
        if trainer.sanity_checking or best is None:
            return
        is_best = best.check_monitor_top_k(trainer, trainer.callback_metrics.get(str(best.monitor)))  # collective
        if not is_best or find_spec("matplotlib") is None:
            return
        assert isinstance(pl_module, TaskModule)
        for number, (split, metrics) in enumerate(pl_module.stage_metrics()[0].evaluated("val").items()):
            scores, broken = metrics.class_scores(), metrics.broken  # of all processes
            if not isinstance(scores, ConfusionScores) or len(scores.support) > MOST_SHOWN:
                continue
            if not broken and trainer.is_global_zero:
                measured = f"accuracy {scores.accuracy:.3f}, macro F1 {scores.macro.f1:.3f}"
                title = f"{split}, step {trainer.global_step:,}\n{measured}"
                image = confusion_image(scores, pl_module.task.labels, title)
                _show(trainer, image, _path(best, number, split))


def _show(trainer: Trainer, image: Pixels, path: Path) -> None:
    from matplotlib.image import imsave

    # the step of Lightning's own points of this validation
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    for logger in tensorboard_loggers(trainer):
        logger.experiment.add_image(f"val/{path.stem}", image, step, dataformats="HWC")
    write_whole(path, lambda beside: imsave(beside, image, format="png"))


def _path(best: ModelCheckpoint, number: int, split: str) -> Path:
    return Path(str(best.dirpath)) / f"confusion{suffix(number, split)}.png"
