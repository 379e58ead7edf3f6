"""Atomic writes of files and folders.

Content is written in a folder of its own beside the target, flushed to the disk and renamed, so neither a kill nor a
power cut leaves a partial file. The folder's maker locks it, and the lock dies with the process: an unlocked folder is
what a kill left behind (process numbers repeat in containers), and the next write to the target removes it.
"""

import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

NEW, OLD = "new", "old"
"""In a writer's folder: what is being written, and what it replaces."""
SUFFIX = ".unfinished"


def write_whole(path: Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    """Let `write` fill a temporary file, then rename it to `path`, or to what `path` links to.

    The file's folder is made if there is none. `keep` is another name for the previous file, instead of its removal.

    Raises:
        OSError: `path` is a folder or a device, which no file replaces; or it can't be written.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "is no regular file, so it is not replaced", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(path) as folder:
        write(folder / NEW)
        _flush(folder / NEW)
        if keep is not None and path.exists():
            _keep(path, folder / OLD, keep)
        os.replace(folder / NEW, path)
        _flush(path.parent)


def write_text_whole(path: Path, text: str) -> None:
    """`write_whole` of a text, in UTF-8."""
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_folder_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder, then rename it to `path`, or to what `path` links to.

    A folder can't be replaced in one step. If a kill comes between the two, the next write, or `recover`, gives the
    old one its name back.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is no folder, so it is not replaced", str(path))
    with _beside(path) as folder:
        (folder / NEW).mkdir()
        write(folder / NEW)
        allowed = (folder / NEW).stat().st_mode & 0o666
        for inner in (*(folder / NEW).rglob("*"), folder / NEW):
            if inner.is_file():
                inner.chmod(allowed)  # safetensors writes files for their owner alone
            _flush(inner)
        if path.exists():
            os.replace(path, folder / OLD)
        os.replace(folder / NEW, path)
        _flush(path.parent)


def recover(path: Path) -> None:
    """Remove what killed processes left beside `path`; a folder that one of them was replacing gets its name back."""
    path = Path(os.path.realpath(path))
    # as many letters as mkdtemp draws, so that what belongs to "a" does not belong to "a.b" too
    for folder in path.parent.glob(f".{glob.escape(path.name)}.????????{SUFFIX}"):
        with suppress(OSError), _locked(folder, wait=False):
            _restore(folder, path)
            shutil.rmtree(folder)


def remove_unfinished(path: Path) -> None:
    """`recover`, and remove a checkpoint's temporary files of version 0.2.0, whose names end in a process's number."""
    recover(path)
    for file in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if file.name.rpartition(".")[2].isdigit() and file.is_file():
            file.unlink(missing_ok=True)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A new, locked folder on the disk of `path`; afterwards it is removed, with what is still in it."""
    recover(path)
    with ExitStack() as held:
        folder = _new_folder(path, held)
        try:
            yield folder
        finally:
            _restore(folder, path)  # a signal may have come between two renames
            shutil.rmtree(folder, ignore_errors=True)


def _new_folder(path: Path, held: ExitStack) -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(SUFFIX, f".{path.name}.", path.parent))
        with suppress(FileNotFoundError):  # another process has taken it for an unfinished one: it was not locked yet
            held.enter_context(_locked(folder, wait=True))
            folder.stat()
            return folder


@contextmanager
def _locked(folder: Path, wait: bool) -> Iterator[None]:
    """Hold the folder's lock; an OSError if another process holds it, or the file system has none."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            if not wait:
                raise  # what can't be locked is not removed either
        yield
    finally:
        os.close(descriptor)


def _keep(path: Path, beside: Path, name: Path) -> None:
    try:
        os.link(path, beside)
    except OSError:  # a file system without hard links
        os.replace(path, beside)
    os.replace(beside, name)


def _restore(folder: Path, path: Path) -> None:
    if (folder / OLD).exists() and not path.exists():
        os.replace(folder / OLD, path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
