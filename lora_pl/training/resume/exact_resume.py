"""A resumed run ends bit for bit as the run that was never stopped."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from numpy.typing import NDArray

from lora_pl.errors import UserError
from lora_pl.model.metrics import SplitMetrics
from lora_pl.model.module import TaskModule
from lora_pl.reporting import say
from lora_pl.training.resume.conditions import OR_FORCE, conditions, require_same

RESUME_KEY = "lora_pl_resume"
"""A checkpoint's key of the state that Lightning leaves out."""

MOST = 1 << 48
"""More steps than any run takes."""
ONE = torch.ones(())


class ExactResume(Callback):
    """Saves and restores what Lightning leaves out of a checkpoint.

    That is the position in the epoch's random order (Lightning restarts the epoch's data), the random generators of
    every process, the training metrics' sums of the epoch so far, the last values of logged metrics, whether early
    stopping has ended the run, and the count behind the steps of log points. Lightning's own counters are written as
    they are between two steps, after a window of accumulated gradients with its logging and its validation.
    `SavePoints` saves there.

    It must be the first callback, so that on resume it restores the generators before others draw from them.

    Args:
        strict: Whether a checkpoint from which the run can't be resumed exactly is an error.
    """

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict
        self._loaded: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state; collective over the processes."""
        epoch, batch = position(trainer)
        own = {"random": random_state(), "sums": [metrics.sums() for metrics in _of_training(pl_module)]}
        checkpoint[RESUME_KEY] = {
            "epoch": epoch,
            "batch": batch,
            "log_steps": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "processes": _gathered(trainer, own),
            "order": getattr(trainer.datamodule, "order", None),  # type: ignore[attr-defined]
            "fills": getattr(trainer.datamodule, "fills", None),  # type: ignore[attr-defined]
            "conditions": conditions(trainer, pl_module),
            "between_steps": between_steps(trainer),
            "metrics": dict(trainer.callback_metrics),
            "stopped": trainer.should_stop and _stops_early(trainer),
        }
        if between_steps(trainer):
            progress = trainer.fit_loop.epoch_progress.current
            _settle(checkpoint, epoch, batch, bool(batch) or progress.started > progress.processed)  # type: ignore[attr-defined]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Start the data where the run was; the rest waits for the first step.

        Raises:
            UserError: `checkpoint.state`, it is of other types; `resume`, strict, and the run would go on as another.
        """
        require_like(trainer.fit_loop.state_dict(), checkpoint["loops"]["fit_loop"], "loops.fit_loop")
        self._loaded = loaded = checkpoint.get(RESUME_KEY)
        if loaded is None:
            return
        require_like({"epoch": 0, "batch": 0, "log_steps": 0}, loaded, RESUME_KEY)
        if self.strict:
            self._require_exact(trainer, pl_module, loaded)
            if loaded.get("stopped"):
                say("resume: early stopping has ended this run; --force trains on")
                trainer.should_stop = True
        if hasattr(trainer.datamodule, "start_at"):  # type: ignore[attr-defined]
            # versions up to 0.2.0 name no order, and their rows have no filler
            order, fills = loaded.get("order", "summed"), loaded.get("fills", False)
            trainer.datamodule.start_at(loaded["epoch"], loaded["batch"], order, fills)  # type: ignore[attr-defined]

    def _require_exact(self, trainer: Trainer, pl_module: LightningModule, loaded: dict[str, Any]) -> None:
        if not loaded.get("between_steps", True):
            raise UserError("resume", f"the checkpoint is of the middle of a step; take the run's last.ckpt{OR_FORCE}")
        if loaded["batch"] and not hasattr(trainer.datamodule, "start_at"):  # type: ignore[attr-defined]
            raise UserError("resume", f"these data can't start within an epoch (they have no start_at){OR_FORCE}")
        saved = {"the number of processes": len(loaded["processes"]), **loaded.get("conditions", {})}
        require_same(saved, conditions(trainer, pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore the rest before the first step, when nothing changes it any more."""
        if self._loaded is not None:
            loaded, self._loaded = self._loaded, None
            self.restore_progress(trainer, pl_module, loaded)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise a UserError, `checkpoint.state`: the optimizer's state is of other shapes than the parameters."""
        for optimizer in trainer.optimizers:
            for parameter, state in optimizer.state.items():
                moments = [state.get(name, parameter) for name in ("exp_avg", "exp_avg_sq")]
                if any(moment.shape != parameter.shape for moment in moments) or state.get("step", ONE).numel() != 1:
                    raise UserError("checkpoint.state", "the optimizer's state does not fit the parameters' shapes")

    def restore_progress(self, trainer: Trainer, pl_module: LightningModule, loaded: dict[str, Any]) -> None:
        """The counters, the metrics' sums and the random generators."""
        progress = trainer.fit_loop.epoch_loop
        progress._batches_that_stepped = loaded["log_steps"]
        progress.batch_progress.total.ready = progress.batch_progress.total.completed + 1
        trainer.callback_metrics.update(loaded.get("metrics", {}))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):  # which acts at the start of an epoch
                callback.on_train_epoch_start(trainer)
        if len(loaded["processes"]) != trainer.world_size:
            say(f"resume: saved by {len(loaded['processes'])} processes; random numbers and metric sums start anew")
            return
        own = loaded["processes"][trainer.global_rank]
        if loaded["batch"]:
            _load_sums(pl_module, own["sums"])
        set_random_state(own["random"])


def require_like(own: Any, stored: Any, name: str) -> None:
    """Raise a UserError, `checkpoint.state`, unless `stored` has the counters that `own` has."""
    if isinstance(own, dict):
        if not isinstance(stored, dict) or own.keys() - stored.keys():
            raise UserError("checkpoint.state", f"expected {name} with {', '.join(map(str, own))}, got {stored!r:.60}")
        for key, value in own.items():
            require_like(value, stored[key], f"{name}.{key}")
    elif isinstance(own, bool | int) and (type(stored) is not type(own) or not 0 <= stored <= MOST):
        raise UserError("checkpoint.state", f"expected {type(own).__name__} for {name}, got {stored!r:.60}")


def position(trainer: Trainer) -> tuple[int, int]:
    """Whole epochs, and finished batches of the next one; an epoch cut short by `max_steps` or a stop has not ended."""
    epochs = trainer.fit_loop.epoch_progress.current
    done: int = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
    if epochs.started > epochs.processed:  # type: ignore[attr-defined]
        return epochs.processed, done  # type: ignore[attr-defined]
    if 0 < done < trainer.num_training_batches:
        return epochs.processed - 1, done  # type: ignore[attr-defined]
    return epochs.processed, 0  # type: ignore[attr-defined]


def between_steps(trainer: Trainer) -> bool:
    """Whether no step is in flight: before a step's forward pass, or after the last epoch."""
    epochs = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    return batches.ready > batches.started or epochs.completed == epochs.ready  # type: ignore[attr-defined]


def _settle(checkpoint: dict[str, Any], epoch: int, batch: int, in_epoch: bool) -> None:
    """Set Lightning's counters to what they are before batch `batch` of epoch `epoch`.

    To Lightning, a batch that is ready but not started means that it stopped between two steps. An epoch has begun, at
    its first batch too, once its `on_train_epoch_start` was called; a resumed run does not call it again.
    """
    loops = checkpoint["loops"]["fit_loop"]
    begun = epoch + in_epoch
    epochs = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    loops["epoch_progress"] = {"total": epochs, "current": dict(epochs)}
    total = loops["epoch_loop.batch_progress"]["total"]["processed"]
    batches = {
        kind: {"ready": done + 1, "started": done, "processed": done, "completed": done}
        for kind, done in (("total", total), ("current", batch))
    }
    loops["epoch_loop.batch_progress"] = {**batches, "is_last_batch": False}
    # after an epoch, Lightning has the last one that was trained
    checkpoint["epoch"] = epoch if batch else max(0, epoch - 1)


def _stops_early(trainer: Trainer) -> bool:
    """A run that ended by early stopping has ended; one that ended by `max_time` may be given more."""
    return any(
        isinstance(callback, EarlyStopping) and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED
        for callback in trainer.callbacks  # type: ignore[attr-defined]
    )


def _load_sums(pl_module: LightningModule, stored: Any) -> None:
    """Restore the training metrics' sums of every head."""
    every = [stored] if isinstance(stored, dict) else stored  # up to 0.3.0 there was one head
    heads = zip(_of_training(pl_module), every, strict=True)
    anew = sorted({name for metrics, sums in heads for name in metrics.load_sums(sums)})
    if anew:
        say(f"resume: another version summed {', '.join(anew)} differently; this epoch's train/ values start anew")


def _of_training(pl_module: LightningModule) -> list[SplitMetrics]:
    """The training metrics of every head."""
    return [metrics.of("train") for metrics in cast(TaskModule, pl_module).stage_metrics()]


def _gathered(trainer: Trainer, own: dict[str, Any]) -> list[dict[str, Any]]:
    """Every process's state, by rank."""
    if trainer.world_size == 1:
        return [own]
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, own)
    return everyone


def random_state() -> dict[str, Any]:
    """The states of the generators of Python, NumPy, torch and the current GPU, as tensors and plain values."""
    numbers = cast(tuple[str, NDArray[np.uint32], int, int, float], np.random.get_state())
    keys, *rest = numbers[1:]
    words = torch.from_numpy(keys.astype(np.int64))
    state = {"python": random.getstate(), "numpy": (words, *rest), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore a `random_state`; the GPU's generator only if the state has it."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
