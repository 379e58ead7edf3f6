"""One process at a time uses a run."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer

from lora_pl.errors import UserError
from lora_pl.reporting import say
from lora_pl.training.run_folder import is_first_process, require_free

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system without locks answers."""


@contextmanager
def run_lock(folder: Path, key: str = "run_name") -> Iterator[None]:
    """Within the context no other process uses the run of `folder`: `.NAME.lock` beside it is locked.

    The kernel unlocks it when the process ends, however it ends. The first process of several locks for all; a thread
    may lock again what it has locked.

    Raises:
        UserError: `key`, the run is in use, or the folder is the file system's root.
    """
    place = folder.resolve()
    if not place.name:
        raise UserError(key, f"expected a folder with a name, got {place}")
    with ExitStack() as held:
        if is_first_process():
            _lock(folder, place.with_name(f".{place.name}.lock"), key, held)
        yield


def _lock(folder: Path, path: Path, key: str, held: ExitStack) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # no soft lock: a file that merely exists would outlive a killed process
        held.enter_context(FileLock(path, blocking=False, is_singleton=True, fallback_to_soft=False))
    except Timeout as error:
        raise UserError(key, f"{folder} is in use by {_holder(path)}; wait for it, or stop it") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        say(f"{key}: {path} can't be locked ({error}); make sure that no other process uses the run")
    with suppress(OSError):  # for the error of another process
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")


def _holder(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        said = path.read_text(encoding="utf-8")
        if said.isprintable() and 0 < len(said) < 300:
            return said
    return "another process"


class LockedRun(Callback):
    """Locks the run of `folder` while a trainer fits that `Run.trainer` gave away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held, self._fitted = ExitStack(), False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lock a run that nobody began since the trainer was made."""
        self._held.enter_context(run_lock(self.folder))
        if not self._fitted:
            require_free(self.folder, None)
        self._fitted = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Unlock."""
        self._held.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Unlock."""
        self._held.close()
