"""Reading and writing checkpoint files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Required

import torch
from torch import Tensor
from typing_extensions import TypedDict

from lora_pl.errors import UserError
from lora_pl.storage.archive import NUMBERS, read_archive, require_finite
from lora_pl.storage.paths import expanded
from lora_pl.storage.schema import require_values
from lora_pl.storage.write_whole import write_whole

BEST, LAST, PREVIOUS, SUFFIX = "best", "last", "previous", ".ckpt"
"""The checkpoints of a run by name."""
BASE_KEY = "lora_pl_base"
"""Where a checkpoint says what it was trained on: `Fingerprints`."""
START_KEY = "lora_pl_start"
"""Where a checkpoint says what its model started from: `Started`."""
SETTINGS_KEY, DATA_KEY = "hyper_parameters", "datamodule_hyper_parameters"
REQUIRED = (BASE_KEY, "state_dict", SETTINGS_KEY)


class Fingerprints(TypedDict, total=False):
    """What a checkpoint or an adapter folder says of its base; 0.2.0 has the first three."""

    encoder: Required[str]
    weights: Required[str]
    vocabulary: Required[str]
    configuration: str
    tokenizer: str


class Started(TypedDict):
    """The file of `model.start_from`."""

    checkpoint: str
    """Its path, then."""
    sha256: str
    """Of its bytes, hexadecimal."""


class OptimizerGroup(TypedDict, total=False):
    """Settings of AdamW, and the numbers of its parameters."""

    params: Required[list[int]]
    lr: Required[float]
    betas: tuple[float, float]
    eps: float
    weight_decay: float


class OptimizerState(TypedDict):
    """AdamW's state."""

    state: dict[int, dict[str, Tensor]]
    param_groups: list[OptimizerGroup]


class ScheduleState(TypedDict):
    """The state of `make_schedule`."""

    base_lrs: list[float]
    last_epoch: int
    _step_count: int
    _last_lr: list[float]
    lr_lambdas: list[None]


class Contents(TypedDict, total=False):
    """What is read of a checkpoint, wherever it is read; a resumed run's counters are checked when it resumes."""

    state_dict: Required[dict[str, Tensor]]
    hyper_parameters: Required[dict[str, Any]]
    lora_pl_base: Required[Fingerprints]
    lora_pl_start: Started
    datamodule_hyper_parameters: dict[str, Any]
    epoch: int
    global_step: int
    optimizer_states: list[OptimizerState]
    lr_schedulers: list[ScheduleState]
    loops: dict[str, dict[str, Any]]
    callbacks: dict[str, Any]
    lora_pl_run: dict[str, Any]
    lora_pl_resume: dict[str, Any]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint on the CPU, read without running code from it.

    Raises:
        UserError: `checkpoint.missing`, `checkpoint.damaged` (inf and NaN too), `checkpoint.refused` (it holds more
            than tensors and plain values), or `checkpoint.format` (lora_pl did not write it).
    """
    checkpoint = read_archive(expanded(path))
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(key), dict) for key in REQUIRED):
        raise UserError(
            "checkpoint.format",
            f"{path}: lora_pl did not write this file; expected best.ckpt or last.ckpt of a run; of another program's "
            "adapter lora_pl import makes a checkpoint",
        )
    require_values(checkpoint, Contents, "checkpoint.format", f"{path}: ")
    require_finite(str(path), checkpoint["state_dict"], "checkpoint", NUMBERS)
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
                steps[path] = read_checkpoint(path).get("global_step", 0)
        except UserError as error:
            damaged.append(str(error))
        if name == LAST and steps:
            break
    if damaged and not steps:
        raise UserError("checkpoint.damaged", f"{folder}: every checkpoint is damaged: {'; '.join(damaged)}")
    return max(steps, key=steps.__getitem__, default=None), damaged


def check_base(checkpoint: Mapping[str, Any], base: Mapping[str, str]) -> None:
    """Raise `checkpoint.base` unless the checkpoint was trained on the encoder that `base` fingerprints."""
    stored = checkpoint[BASE_KEY]
    for part in base:
        if part != "encoder" and part in stored and stored[part] != base[part]:
            raise UserError(
                "checkpoint.base",
                f"trained on {stored['encoder']}, but {base['encoder']} differs in its {part} "
                f"(fingerprint {base[part]}, expected {stored[part]}); give that encoder",
            )


def save_checkpoint(checkpoint: Mapping[str, Any], path: Path, keep: Path | None = None) -> None:
    """Write the file by `write_whole`, which a crash or a full disk never leaves in part.

    Raises:
        UserError: `checkpoint.unwritten`: the disk is full or read-only.
    """
    try:
        write_whole(path, lambda beside: _save(checkpoint, beside), keep=keep)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        raise UserError(
            "checkpoint.unwritten", f"{path}: could not be written ({error}); the previous file is intact"
        ) from error


def _save(checkpoint: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(checkpoint, file)
