"""Reading and writing checkpoint files."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lora_pl.errors import UserError
from lora_pl.files import write_whole

BASE_KEY = "lora_pl_base"
"""Where a checkpoint says what it was trained on: `{"encoder", "weights", "vocabulary"}`."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint on the CPU, read without running code from it.

    Raises:
        UserError: there is no file, it is empty, truncated or no PyTorch file, it holds more than tensors and
            primitive values, or lora_pl did not write it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; was its writing interrupted?")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_why_refused(path, error)) from error
    except Exception as error:  # the unpickler raises what its opcodes happen to raise
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: truncated or no checkpoint: {first[:150]}") from error
    if not isinstance(checkpoint, dict) or not {BASE_KEY, "state_dict", "hyper_parameters"} <= checkpoint.keys():
        raise UserError(f"{path}: lora_pl did not write this file; expected best.ckpt or last.ckpt of a run")
    return checkpoint


SHAPING = ("task", "label_names", "method", "head", "lora.r", "lora.target_modules")
"""The settings that a checkpoint's tensors depend on."""


def check_settings(checkpoint: Mapping[str, Any], hparams: Mapping[str, Any]) -> None:
    """Raise a UserError if the model was built with other settings than those its tensors depend on."""
    for key in SHAPING:
        stored, given = (_nested(values, key) for values in (checkpoint["hyper_parameters"], hparams))
        if stored != given:
            raise UserError(
                f"checkpoint: trained with {key} = {stored}, but the model has {key} = {given}; leave the setting out "
                "or give the checkpoint's"
            )


def check_base(checkpoint: Mapping[str, Any], base: Mapping[str, str]) -> None:
    """Raise a UserError unless the checkpoint was trained on the encoder that `base` fingerprints."""
    stored = checkpoint[BASE_KEY]
    for part in ("weights", "vocabulary"):
        if stored[part] != base[part]:
            raise UserError(
                f"encoder: the {part} of {base['encoder']} (fingerprint {base[part]}) are not those of "
                f"{stored['encoder']} ({stored[part]}), on which this checkpoint was trained; give that encoder"
            )


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that an interruption or a full disk leaves the earlier
    file whole; reads with `read_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`; a UserError where the disk refuses."""
        try:
            write_whole(Path(path), lambda beside: _save(checkpoint, beside))
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
            raise UserError(f"{path}: could not be written ({error}); what was there before is whole") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint on the CPU."""
        return read_checkpoint(path)


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


def _nested(values: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def _why_refused(path: Path, error: pickle.UnpicklingError) -> str:
    text = str(error)
    if "Unsupported" in text or "GLOBAL" in text or ("WeightsUnpickler error" in text and "persistent" not in text):
        return f"{path}: refused, the file holds more than tensors and plain values and could run code when loaded"
    return f"{path}: truncated or no checkpoint: {text.splitlines()[0][:150]}"
