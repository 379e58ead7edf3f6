"""What a person reads while a verb runs; on standard error, so that standard output stays the verb's product."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_only

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def make_console(stderr: bool = True) -> Console:
    """A console that neither colours numbers nor breaks a line that a pipe reads."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@rank_zero_only
def say(message: RenderableType) -> None:
    """Print a line or a table, by the first process alone."""
    make_console().print(message, soft_wrap=isinstance(message, str), markup=False)
