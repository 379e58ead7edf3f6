"""Messages on standard error, so that standard output holds only a verb's results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_only

from lora_pl.printable import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_silent: ContextVar[bool] = ContextVar("silent", default=False)


def make_console(stderr: bool = True) -> Console:
    """A console that does not colour numbers."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@rank_zero_only
def say(message: RenderableType) -> None:
    """Print a line or a table, in the first process only; control characters in a line are escaped."""
    if not _silent.get():
        shown = printable(message, kept="\n\t") if isinstance(message, str) else message
        make_console().print(shown, soft_wrap=isinstance(message, str), markup=False)


@contextmanager
def silence() -> Iterator[None]:
    """Within the context, `say` prints nothing."""
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)
