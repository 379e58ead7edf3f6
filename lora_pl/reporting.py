"""Messages on standard error, so that standard output holds only a verb's results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from lightning_utilities.core.rank_zero import rank_zero_only

from lora_pl.printable import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Where launchers tell a process its number."""
_silent: ContextVar[bool] = ContextVar("silent", default=False)


def make_console(stderr: bool = True) -> Console:
    """A console that does not colour numbers."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def launched_rank() -> int:
    """This process's number as its launcher has told it, before there is a trainer; 0 without a launcher."""
    return next((int(os.environ[name]) for name in RANKS if name in os.environ), 0)


# Lightning sets it to the process's own later
rank_zero_only.rank = getattr(rank_zero_only, "rank", launched_rank())  # type: ignore[attr-defined]


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
