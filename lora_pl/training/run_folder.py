"""A run's name and its two folders, `checkpoints/NAME` and `logs/NAME`."""

from __future__ import annotations

import itertools
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from lightning.fabric.utilities.rank_zero import _get_rank

from lora_pl.errors import UserError

CHECKPOINTS, LOGS = Path("checkpoints"), Path("logs")


def run_name(given: str | None, config: str | None, ckpt_path: str | None) -> str:
    """The name as given, that of the run that is resumed, or the configuration's name and the time.

    Raises:
        UserError: a run of the given name is there already and is not the one that is resumed.
    """
    resumed = _run_of(ckpt_path)
    if given is None:
        return resumed or _reserved(f"{Path(config).stem if config else 'run'}-{datetime.now():%Y%m%d-%H%M%S}")
    if Path(given).name != given or given in (".", ".."):
        raise UserError(f"run_name: expected a name without slashes, got {given!r}")
    if given != resumed and not _get_rank() and _taken(given):
        raise UserError(
            f"run_name: the run {given} exists ({CHECKPOINTS / given}); choose another name, or go on with it by "
            f"--resume or --ckpt_path {CHECKPOINTS / given / 'last.ckpt'}"
        )
    return given


def _reserved(name: str) -> str:
    """The name, with a number where a run that started in the same second has it; its folder is made."""
    if _get_rank():  # the first process names the run
        return name
    for number in itertools.count(1):
        unique = name if number == 1 else f"{name}-{number}"
        with suppress(FileExistsError):
            (CHECKPOINTS / unique).mkdir(parents=True)
            return unique
    raise AssertionError


def _run_of(ckpt_path: str | None) -> str | None:
    """The run whose folder the checkpoint lies in, none where it lies elsewhere."""
    if ckpt_path is None:
        return None
    folder = Path(ckpt_path).resolve().parent
    return folder.name if folder.parent == CHECKPOINTS.resolve() else None


def _taken(name: str) -> bool:
    """Whether the run has come as far as a checkpoint; one that failed before may be started again."""
    return any((CHECKPOINTS / name).glob("*.ckpt"))
