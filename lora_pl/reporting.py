"""What a person reads while a verb runs; on standard error, so that standard output stays the verb's product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_only

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_silent: ContextVar[bool] = ContextVar("silent", default=False)


def make_console(stderr: bool = True) -> Console:
    """A console that neither colours numbers nor breaks a line that a pipe reads."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@rank_zero_only
def say(message: RenderableType) -> None:
    """Print a line or a table, by the first process alone."""
    if not _silent.get():
        make_console().print(message, soft_wrap=isinstance(message, str), markup=False)


@contextmanager
def silence() -> Iterator[None]:
    """Within the context, `say` says nothing: one run among many is no news."""
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)
