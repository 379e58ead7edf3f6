"""Errors the user can fix."""

import copyreg
from typing import Any

from lora_pl.printable import printable

LONGEST = 2000
"""Characters of a message: what it quotes may come from a file."""


class UserError(ValueError):
    """A mistake in what was given: `KEY: MESSAGE`, printed by the command line without a traceback.

    Args:
        key: What it is about, stable and dotted: an option (`data.too_long`) or a kind of file (`checkpoint.damaged`).
        message: What was given, what was expected and what to do, in one or two lines. Control characters, which may
            come from a file, are escaped.
    """

    exit_code = 1

    def __init__(self, key: str, message: str) -> None:
        self.key, self.message = key, printable(message)[:LONGEST]
        super().__init__(f"{key}: {self.message}")

    def __reduce__(self) -> Any:
        # an exception is pickled as a call of its class with `args`; this one, as Ray sends it, without a call
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class UsageError(UserError):
    """A command line or a configuration file that can't be read."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name where there is none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
