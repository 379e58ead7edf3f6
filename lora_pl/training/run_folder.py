"""A run's name and its folder, `checkpoints/NAME`."""

from __future__ import annotations

import itertools
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from lightning.fabric.utilities.rank_zero import _get_rank

from lora_pl.errors import UserError

CHECKPOINTS, LOGS = Path("checkpoints"), Path("logs")


def run_name(given: str | None, config: str | None, ckpt_path: str | None) -> str:
    """The given name, else that of the run of `ckpt_path`, else the configuration's name and the time."""
    resumed = Path(ckpt_path).resolve().parent if ckpt_path else None
    if given is None and resumed is not None and resumed.parent == CHECKPOINTS.resolve():
        return resumed.name
    return given or _reserved(f"{Path(config).stem if config else 'run'}-{datetime.now():%Y%m%d-%H%M%S}")


def require_name(name: str) -> None:
    """Raise a UserError, `run_name`, unless the name is that of a folder."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise UserError("run_name", f"expected a name without slashes, got {name!r}")


def require_free(folder: Path, checkpoint: Path | None) -> None:
    """Raise a UserError, `run_name`, if the folder has checkpoints but not `checkpoint`, which is resumed."""
    resumed = checkpoint is not None and checkpoint.resolve().parent == folder.resolve()
    if not resumed and not _get_rank() and any(folder.glob("*.ckpt")):
        raise UserError(
            "run_name",
            f"the run {folder.name} exists ({folder}); choose another name, or resume it by --resume or "
            f"--ckpt_path {folder / 'last.ckpt'}",
        )


def _reserved(name: str) -> str:
    """The name, with a number if a run of the same second has it; makes its folder."""
    if _get_rank():  # the first process names the run
        return name
    for number in itertools.count(1):
        unique = name if number == 1 else f"{name}-{number}"
        with suppress(FileExistsError):
            (CHECKPOINTS / unique).mkdir(parents=True)
            return unique
    raise AssertionError
