"""Importing libraries without the garbage collector. Light."""

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
