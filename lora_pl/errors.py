"""What a user can mend."""


class UserError(ValueError):
    """A mistake in what was given. The message says in one or two lines what was given, what was expected and what
    to do; the command line prints it without a traceback."""

    exit_code = 1


class UsageError(UserError):
    """A command line or a configuration file that can't be read."""

    exit_code = 2
