"""Runs a verb and prints its errors. Light: a verb's own imports come with the verb."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module

from lora_pl import __version__
from lora_pl.cli.first_page import PAGES, first_page
from lora_pl.cli.uncollected import end_uncollected, uncollected
from lora_pl.cli.verbs import VERBS, main_page
from lora_pl.errors import UserError
from lora_pl.printable import printable

HELP = ("-h", "--help")
LOST = re.compile(r"(gloo|NCCL)[\s\S]*(closed by peer|reset by peer|remote process exited|Broken pipe)")
"""How torch.distributed says that another process has gone."""


def main(args: Sequence[str] | None = None) -> int:
    """Run `lora_pl ARGS`; the exit code is 0, 1 if it failed, 2 for a usage error, 128 + N if signal N stopped it."""
    _fill_standard_streams()
    end_uncollected()
    try:
        code = _main(list(sys.argv[1:] if args is None else args))
        _flush()
    except BrokenPipeError:  # the reader of our output has closed it
        _flush(discards=True)
        return 1
    return code


def _flush(discards: bool = False) -> None:
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            if not discards:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fill_standard_streams() -> None:
    """Connect closed standard streams to /dev/null: else a file of ours gets such a number, and what is printed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _main(given: list[str]) -> int:
    if not given or given[0] in HELP:
        print(main_page())
        return 0 if given else 2
    if given[0] == "--version":
        print(f"lora_pl {__version__}")
        return 0
    if given[0] not in VERBS:
        near = difflib.get_close_matches(given[0], VERBS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return _fail("lora_pl", f"verb: expected one of {', '.join(VERBS)}, got {given[0]!r}{hint}", 2)
    if given[0] in PAGES and given[1:2] and given[1] in HELP and given[2:] != ["all"]:
        print(first_page(given[0]))
        return 0
    return _run(given)


def _run(given: list[str]) -> int:
    verb = f"lora_pl {given[0]}"
    try:
        with uncollected():
            module = import_module(f"lora_pl.cli.{VERBS[given[0]][0]}")
        module.run(given)
    except SystemExit as done:  # --help and --print_config, and Lightning on Ctrl-C
        if isinstance(done.__context__, KeyboardInterrupt):
            return _fail(verb, "interrupted", 130)
        return int(done.code or 0)
    except KeyboardInterrupt:
        return _fail(verb, "interrupted", 130)
    except BrokenPipeError:
        raise
    except Exception as error:
        mistake = _user_error(error)
        if mistake is None:
            raise
        return _fail(verb, str(mistake), getattr(mistake, "exit_code", 1))
    return 0


def _user_error(error: BaseException | None) -> ValueError | None:
    """The error, or its cause, as one that the user can fix, with a key; None for a bug."""
    from lora_pl.lora import LoRAError

    while error is not None:
        if isinstance(error, UserError | LoRAError):
            return error
        if isinstance(error, OSError):
            return UserError("file", str(error))
        if type(error).__name__ == "MisconfigurationException":
            return UserError("trainer", str(error))
        if isinstance(error, RuntimeError) and LOST.search(str(error)):
            return UserError("trainer", "another process of this command has failed; its own message says why")
        error = error.__cause__
    return None


def _fail(who: str, message: str, code: int) -> int:
    print(f"{who}: {printable(message)}", file=sys.stderr)
    return code
