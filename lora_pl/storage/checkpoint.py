"""Reading and writing checkpoint files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lora_pl.errors import UserError
from lora_pl.storage.archive import printable, read_archive
from lora_pl.storage.flat import flatten
from lora_pl.storage.write_whole import write_whole

BEST, LAST, PREVIOUS, SUFFIX = "best", "last", "previous", ".ckpt"
"""The checkpoints of a run by name."""
HANDED_BACK = ".temp.ckpt"
"""Lightning's name for a file in a temporary folder of its own (`ddp_spawn`)."""
BASE_KEY = "lora_pl_base"
"""Where a checkpoint says what it was trained on: `{"encoder", "weights", "vocabulary"}`."""
REQUIRED = (BASE_KEY, "state_dict", "hyper_parameters")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint on the CPU, read without running code from it.

    Raises:
        UserError: `checkpoint.missing`, `checkpoint.damaged`, `checkpoint.refused` (it holds more than tensors and
            plain values), or `checkpoint.format` (lora_pl did not write it).
    """
    checkpoint = read_archive(Path(path))
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(key), dict) for key in REQUIRED):
        raise UserError(
            "checkpoint.format", f"{path}: lora_pl did not write this file; expected best.ckpt or last.ckpt of a run"
        )
    return checkpoint


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """A run's newest intact checkpoint, and the errors of damaged newer ones.

    `last.ckpt`, else the newer of `previous.ckpt` and `best.ckpt`; None if the run has no checkpoint yet.

    Raises:
        UserError: `checkpoint.damaged`: every checkpoint is.
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
        raise UserError("checkpoint.damaged", f"{folder}: every checkpoint is damaged: {'; '.join(damaged)}")
    return max(steps, key=steps.__getitem__, default=None), damaged


SHAPING = {"task": None, "label_names": None, "method": None, "head": None,
           "lora.r": None, "lora.target_modules": None, "lora.variant": "lora"}  # fmt: skip
"""The settings that a checkpoint's tensors depend on, and their values where a checkpoint has none."""


def check_settings(checkpoint: Mapping[str, Any], hparams: Mapping[str, Any]) -> None:
    """Raise `checkpoint.settings` if the model differs in a setting that the tensors depend on."""
    settings, own = flatten(checkpoint["hyper_parameters"]), flatten(hparams)
    for key, absent in SHAPING.items():
        stored, given = settings.get(key) or absent, own.get(key) or absent
        if stored != given:
            raise UserError(
                "checkpoint.settings",
                f"trained with {key} = {printable(stored)}, but the model has {key} = {given}; leave the setting out",
            )


def check_options(checkpoint: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise `checkpoint.version` if the checkpoint has options that this version lacks."""
    unknown = [key for key in checkpoint["hyper_parameters"] if key not in known]
    if unknown:
        raise UserError(
            "checkpoint.version",
            f"written by another version of lora_pl: this one has no option {printable(', '.join(unknown))}",
        )


def check_base(checkpoint: Mapping[str, Any], base: Mapping[str, str]) -> None:
    """Raise `checkpoint.base` unless the checkpoint was trained on the encoder that `base` fingerprints."""
    stored = checkpoint[BASE_KEY]
    for part in ("weights", "vocabulary"):
        if stored.get(part) != base[part]:
            raise UserError(
                "checkpoint.base",
                f"trained on {printable(stored.get('encoder'))}, but the {part} of {base['encoder']} differ "
                f"(fingerprint {base[part]}, expected {printable(stored.get(part))}); give that encoder",
            )


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints under a temporary name and renames them, so a crash or a full disk never leaves a partial
    file; reads with `read_checkpoint`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: dict[str, str] | None = None
    ) -> None:
        """Write `checkpoint` to `path`; `storage_options={"keep": OTHER}` renames the previous file to OTHER.

        Raises:
            UserError: `checkpoint.unwritten`: the disk is full or read-only.
        """
        keep = (storage_options or {}).get("keep")
        try:
            write_whole(Path(path), lambda beside: _save(checkpoint, beside), keep=Path(keep) if keep else None)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
            raise UserError(
                "checkpoint.unwritten", f"{path}: could not be written ({error}); the previous file is intact"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint on the CPU, or the weights alone that a spawned process hands back."""
        return read_archive(Path(path)) if Path(path).name == HANDED_BACK else read_checkpoint(path)


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(checkpoint, file)
