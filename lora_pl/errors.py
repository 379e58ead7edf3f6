"""Errors the user can fix."""


class UserError(ValueError):
    """A mistake in what was given: `KEY: MESSAGE`, printed by the command line without a traceback.

    Args:
        key: What it is about, stable and dotted: an option (`data.too_long`) or a kind of file (`checkpoint.damaged`).
        message: In one or two lines what was given, what was expected and what to do.
    """

    exit_code = 1

    def __init__(self, key: str, message: str = "") -> None:
        super().__init__(f"{key}: {message}" if message else key)
        self.key = key if message else key.partition(": ")[0]


class UsageError(UserError):
    """A command line or a configuration file that can't be read."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of what an error says, its type's name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
