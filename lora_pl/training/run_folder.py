"""A run's name and its folder, `checkpoints/NAME`."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from lora_pl.errors import UserError
from lora_pl.reporting import launched_rank

CHECKPOINTS, LOGS = Path("checkpoints"), Path("logs")
MAX_BYTES = 200
"""Of a name; 255 is what file systems take, and temporary files have longer names."""
FURTHER_RANKS = ("NODE_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Where several processes are told apart by, beside what Lightning looks at before there is a trainer."""


def run_name(given: str | None, config: str | None, ckpt_path: str | None) -> str:
    """The given name, else that of the run of `ckpt_path`, else the configuration's name and the time."""
    if given is not None:
        return given
    resumed = Path(ckpt_path).resolve().parent if ckpt_path else None
    if resumed is not None and resumed.parent == CHECKPOINTS.resolve():
        return resumed.name
    stem = Path(config).stem.lstrip(".") if config else ""
    return _reserved(f"{stem or 'run'}-{datetime.now():%Y%m%d-%H%M%S}")


def require_name(name: str) -> None:
    """Raise a UserError, `run_name`, unless the name is that of a visible folder on any system."""
    for holds, expected in (
        (name.strip() == name != "", "a name, without spaces around it"),
        ("/" not in name and "\\" not in name, "a name without slashes"),
        (not name.startswith("."), "a name that does not begin with a dot"),
        (name.isprintable(), "printable characters"),
        (len(name.encode("utf-8", "replace")) <= MAX_BYTES, f"at most {MAX_BYTES} bytes"),
    ):
        if not holds:
            raise UserError("run_name", f"expected {expected}, got {name!r}")


def is_first_process() -> bool:
    """Whether this process names, checks and locks the run, as known before there is a trainer."""
    return not launched_rank() and not any(int(os.environ.get(name) or 0) for name in FURTHER_RANKS)


def require_free(folder: Path, checkpoint: Path | None) -> None:
    """Raise a UserError, `run_name`, if the folder has checkpoints but not `checkpoint`, which is resumed."""
    resumed = checkpoint is not None and checkpoint.resolve().parent == folder.resolve()
    if not resumed and is_first_process() and any(folder.glob("*.ckpt")):
        raise UserError(
            "run_name",
            f"the run {folder.name} exists ({folder}); choose another name, or resume it by --resume (resume=True), or "
            f"--ckpt_path {folder / 'last.ckpt'}",
        )


def _reserved(name: str) -> str:
    """The name, with a number if a run of the same second has it; makes its folder."""
    if not is_first_process():
        return name
    for number in itertools.count(1):
        unique = name if number == 1 else f"{name}-{number}"
        with suppress(FileExistsError):
            (CHECKPOINTS / unique).mkdir(parents=True)
            return unique
    raise AssertionError
