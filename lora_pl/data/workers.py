"""What processes that make batches do with signals."""

from __future__ import annotations

import os
import signal
from threading import Thread


def obey_the_trainer(worker: int) -> None:
    """Let a worker process outlive a Ctrl-C or SIGTERM to the whole group, so that the trainer can finish its step.

    The SIGTERM of the trainer's own process, by which it ends workers that an error has left, still ends it: a worker
    that ignored that one too would keep the trainer from ending. (Python's handlers are not told who sends.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    Thread(target=_wait_for_the_parent, daemon=True).start()


def _wait_for_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
