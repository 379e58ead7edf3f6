"""Writing a folder so that it is there whole or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def write_folder_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `path`, then rename it: whatever fails, an earlier folder stays as it was."""
    path = path.absolute()
    beside, aside = (path.with_name(f".{path.name}.{os.getpid()}{suffix}") for suffix in ("", ".old"))
    beside.mkdir()
    try:
        write(beside)
        for file in beside.rglob("*"):
            _flush(file)
        _put(beside, path, aside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _put(beside: Path, path: Path, aside: Path) -> None:
    """A folder can't be replaced in one step: the earlier one steps aside, and comes back where that fails."""
    if not path.exists():
        os.replace(beside, path)
        return
    os.replace(path, aside)
    try:
        os.replace(beside, path)
    except OSError:
        os.replace(aside, path)
        raise
    shutil.rmtree(aside)


def _flush(file: Path) -> None:
    if file.is_file():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
