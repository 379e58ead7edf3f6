"""What must be as it was when a run was saved, beside its options: data, dropout, processes, device, callbacks, ..."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer

from lora_pl.errors import UserError

OR_FORCE = ", or add --force to go on as another run"
Conditions = dict[str, Any]
"""Plain values by the name that an error says."""


def require_resumable(trainer_options: Mapping[str, Any]) -> None:
    """Raise a UserError, `resume`, for a feature of Lightning that can't be resumed exactly."""
    if trainer_options.get("overfit_batches"):
        raise UserError("resume", f"overfit_batches can't be resumed exactly; start a new run{OR_FORCE}")


def conditions(trainer: Trainer, pl_module: LightningModule) -> Conditions:
    """Those of this process's run."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    found = data.fingerprints() if hasattr(data, "fingerprints") else {}
    settings = pl_module.base.config.to_dict()  # type: ignore[union-attr,operator]
    return {
        **{f"the {split} data": fingerprint for split, fingerprint in found.items()},
        "the encoder's dropout": {key: value for key, value in settings.items() if "drop" in key},
        "the metric that chooses the best checkpoint": pl_module.monitor,
        "the number of processes": trainer.world_size,
        "the device": trainer.strategy.root_device.type,
        "the callbacks with a state": _with_state(trainer),
    }


def require_same(saved: Mapping[str, Any], now: Conditions) -> None:
    """Raise a UserError, `resume`, with every condition of the saved run that differs now."""
    changed = [
        f"{name} (was {saved[name]}, now {now[name]})" for name in now if name in saved and saved[name] != now[name]
    ]
    if changed:
        raise UserError("resume", f"different from the saved run: {', '.join(changed)}; restore what was{OR_FORCE}")


def _with_state(trainer: Trainer) -> list[str]:
    """The user's callbacks that a checkpoint holds a state of, less those that can't affect the weights."""
    return sorted(
        callback.state_key
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if type(callback).state_dict is not Callback.state_dict
        and not isinstance(callback, Checkpoint | Timer)
        and not type(callback).__module__.startswith("lora_pl.")
    )
