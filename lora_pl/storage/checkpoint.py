"""Reading and writing checkpoint files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lora_pl.errors import UserError
from lora_pl.storage.archive import printable, read_archive
from lora_pl.storage.write_whole import write_whole

BEST, LAST, PREVIOUS, SUFFIX = "best", "last", "previous", ".ckpt"
"""The checkpoints of a run by name."""
BASE_KEY = "lora_pl_base"
"""Where a checkpoint says what it was trained on: `{"encoder", "weights", "vocabulary"}`."""
REQUIRED = (BASE_KEY, "state_dict", "hyper_parameters")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint on the CPU, read without running code from it.

    Raises:
        UserError: checkpoint.missing, checkpoint.damaged, checkpoint.refused (it holds more than tensors and plain
            values), or checkpoint.foreign (lora_pl did not write it).
    """
    checkpoint = read_archive(Path(path))
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(key), dict) for key in REQUIRED):
        raise UserError(
            "checkpoint.foreign", f"{path}: lora_pl did not write this file; expected best.ckpt or last.ckpt of a run"
        )
    return checkpoint


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that is whole, and why newer ones are not.

    `last.ckpt`, else the newer of `previous.ckpt` and `best.ckpt`; none where the run has no checkpoint yet.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    damaged: list[str] = []
    steps: dict[Path, int] = {}
    for name in (LAST, PREVIOUS, BEST):
        path = folder / f"{name}{SUFFIX}"
        try:
            if path.exists():
                steps[path] = read_checkpoint(path)["global_step"]
        except UserError as error:
            damaged.append(str(error))
        if name == LAST and steps:
            break
    if damaged and not steps:
        raise UserError("checkpoint.damaged", f"{folder}: no checkpoint is whole: {'; '.join(damaged)}")
    return max(steps, key=steps.__getitem__, default=None), damaged


SHAPING = {"task": None, "label_names": None, "method": None, "head": None,
           "lora.r": None, "lora.target_modules": None, "lora.variant": "lora"}  # fmt: skip
"""The settings that a checkpoint's tensors depend on, and what holds where a checkpoint does not have one."""


def check_settings(checkpoint: Mapping[str, Any], hparams: Mapping[str, Any]) -> None:
    """Raise a UserError if the model was built with other settings than those its tensors depend on."""
    for key, absent in SHAPING.items():
        stored, given = (_nested(values, key) or absent for values in (checkpoint["hyper_parameters"], hparams))
        if stored != given:
            raise UserError(
                "checkpoint.settings",
                f"trained with {key} = {printable(stored)}, but the model has {key} = {given}; leave the "
                "setting out or give the checkpoint's",
            )


def check_options(checkpoint: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise a UserError that names the model's options that this version has not."""
    foreign = [key for key in checkpoint["hyper_parameters"] if key not in known]
    if foreign:
        raise UserError(
            "checkpoint.version",
            f"of another version of lora_pl: its {printable(', '.join(foreign))} is no option of this one",
        )


def check_base(checkpoint: Mapping[str, Any], base: Mapping[str, str]) -> None:
    """Raise a UserError unless the checkpoint was trained on the encoder that `base` fingerprints."""
    stored = checkpoint[BASE_KEY]
    for part in ("weights", "vocabulary"):
        if stored.get(part) != base[part]:
            raise UserError(
                "encoder",
                f"the {part} of {base['encoder']} (fingerprint {base[part]}) are not those of "
                f"{printable(stored.get('encoder'))} ({printable(stored.get(part))}), on which this checkpoint was "
                "trained; give that encoder",
            )


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that an interruption or a full disk leaves the earlier
    file whole; reads with `read_checkpoint`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: dict[str, str] | None = None
    ) -> None:
        """Write `checkpoint` to `path`; a UserError where the disk refuses.

        `storage_options={"keep": OTHER}` renames the earlier file to OTHER.
        """
        keep = (storage_options or {}).get("keep")
        try:
            write_whole(Path(path), lambda beside: _save(checkpoint, beside), keep=Path(keep) if keep else None)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
            raise UserError(
                "checkpoint.unwritten", f"{path}: could not be written ({error}); what was there before is whole"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint on the CPU."""
        return read_checkpoint(path)


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(checkpoint, file)


def _nested(values: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None  # type: ignore[assignment]
    return values
