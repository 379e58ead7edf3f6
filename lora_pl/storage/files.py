"""Writing a file so that it is there whole or not at all."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    """Let `write` fill a file beside `path`, then rename it: whatever fails, the earlier file stays as it was.

    The content is on the disk before it gets its name, so that not even a power cut leaves half a file under it.

    Args:
        path: Where the file is to be.
        write: Called with the path of the file beside it.
        keep: A second name that the earlier file gets before it is replaced.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(beside)
        _sync(beside)
        if keep is not None and path.exists():
            _keep(path, keep)
        os.replace(beside, path)
        _sync(path.parent)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of their attempts to write `path`."""
    for beside in path.parent.glob(f".{path.name}.*"):
        if beside.name.rpartition(".")[2].isdigit():
            beside.unlink(missing_ok=True)


def _keep(path: Path, name: Path) -> None:
    beside = name.with_name(f".{name.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    try:
        os.link(path, beside)
    except OSError:  # a file system without hard links
        os.replace(path, beside)
    os.replace(beside, name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
