"""Starting and ending without the garbage collector. Light."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause the collector while libraries are imported: what they make stays, and it would be walked again and again.

    That walking is a fifth of the time that the imports of torch and Transformers take.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def end_uncollected() -> None:
    """Let the process end without a last collection, which frees object by object what the system frees at once.

    That is a quarter of a short command's time. What is registered at exit and threads are still waited for.
    """
    atexit.unregister(gc.freeze)  # of an earlier call
    atexit.register(gc.freeze)
