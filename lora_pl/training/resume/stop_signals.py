"""The signals that stop a run."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

from lora_pl.errors import UserError
from lora_pl.reporting import launched_rank, say


class RunStopped(UserError):
    """A run that was stopped by a signal, with key `stopped` and the shell's exit code, 128 + the signal's number."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__("stopped", message)
        # if another process fails first, Lightning kills the first one at once
        self.exit_code = 128 + signum if not launched_rank() else 0


class StopSignals:
    """Notes SIGINT (Ctrl-C) and SIGTERM, and under SLURM SIGUSR1, while it is installed; a second Ctrl-C interrupts."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Replace the handlers, once; only the main thread can."""
        if self._before:
            return
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        self.received = 0
        if threading.current_thread() is not threading.main_thread():
            return
        requeue = [signal.SIGUSR1] if SLURMEnvironment.detect() else []
        for signum in (signal.SIGINT, signal.SIGTERM, *requeue):
            self._before[signum] = signal.signal(signum, self._note)

    def remove(self) -> None:
        """Restore the handlers."""
        while self._before:
            signum, handler = self._before.popitem()
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum
        if not launched_rank():  # print is not reentrant
            os.write(2, f"{signal.Signals(signum).name}: finishing the step, then saving\n".encode())


def requeue() -> None:
    """Requeue this SLURM job, as Lightning does on SIGUSR1."""
    array, task = os.getenv("SLURM_ARRAY_JOB_ID"), os.getenv("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"scontrol requeue {job}: {error}; submit the job again by hand")
