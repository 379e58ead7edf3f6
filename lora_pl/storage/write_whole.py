"""Atomic writes of files and folders.

Content is written under a temporary name, flushed to the disk and renamed, so neither a kill nor a power cut leaves a
partial file.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    """Let `write` fill a temporary file, then rename it to `path`.

    Args:
        path: The file; its folder is made if there is none.
        write: Called with the temporary path, in the same folder.
        keep: Another name for the previous file, instead of its removal.
    """
    beside = _beside(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(beside)
        _flush(beside)
        if keep is not None and path.exists():
            _keep(path, keep)
        os.replace(beside, path)
        _flush(path.parent)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def write_folder_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder, then rename it to `path`."""
    path = path.absolute()
    beside = _beside(path)
    beside.mkdir()
    try:
        write(beside)
        for inner in (*beside.rglob("*"), beside):
            _flush(inner)
        _replace_folder(beside, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_unfinished(path: Path) -> None:
    """Remove the temporary files that killed processes left beside `path`."""
    for beside in path.parent.glob(f".{path.name}.*"):
        if beside.name.rpartition(".")[2].isdigit():
            beside.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _keep(path: Path, name: Path) -> None:
    beside = _beside(name)
    beside.unlink(missing_ok=True)
    try:
        os.link(path, beside)
    except OSError:  # a file system without hard links
        os.replace(path, beside)
    os.replace(beside, name)


def _replace_folder(beside: Path, path: Path) -> None:
    """A folder can't be replaced in one step: the old one is renamed first, and back if the second step fails."""
    if not path.exists():
        os.replace(beside, path)
        return
    aside = beside.with_name(f"{beside.name}.old")
    os.replace(path, aside)
    try:
        os.replace(beside, path)
    except OSError:
        os.replace(aside, path)
        raise
    shutil.rmtree(aside)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
