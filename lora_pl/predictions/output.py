"""Where predictions go: a file, written whole, or a stream."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lora_pl.errors import UserError
from lora_pl.predictions.writers import WRITERS

STDOUT = "-"


def require_output(output: str, *inputs: str, key: str = "output") -> None:
    """Check that predictions can be written to `output`, before any is made.

    Raises:
        UserError: `key`: a folder, one of the `inputs` (by another name too) or in one, a table into a stream, a file
            with another ending, or in a folder that is missing or read-only.
    """
    path = Path(output)
    folder = Path(os.path.realpath(path)).parent
    if output == STDOUT:
        return
    if not output or path.is_dir():
        raise UserError(key, f"expected a file, got {f'the folder {output}' if output else 'no name'}")
    for given in filter(os.path.exists, inputs):
        if path.exists() and (path.samefile(given) or Path(given).resolve() in path.resolve().parents):
            raise UserError(key, f"{output} is {'in ' * os.path.isdir(given)}{given}, which is read; give another file")
    ending = path.suffix.lower()
    if is_stream(output):
        if ending in WRITERS and ending != ".jsonl":
            raise UserError(key, f"{output} is no regular file; a stream gets JSON lines, give another ending")
    elif ending not in WRITERS:
        raise UserError(key, f"{output}: expected a name that ends in {', '.join(WRITERS)}")
    elif not folder.is_dir():
        raise UserError(key, f"{output}: there is no folder {folder}")
    elif not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(key, f"{output}: the folder {folder} can't be written to")


def is_stream(output: str) -> bool:
    """Whether `output` is written as it comes: standard output by any name, a pipe or a device; no file replaces it."""
    return _is_stdout(output) or (os.path.exists(output) and not os.path.isfile(output))


@contextmanager
def opened(output: str) -> Iterator[IO[bytes]]:
    """The stream, to write to."""
    if not _is_stdout(output):
        with open(output, "wb") as file:
            yield file
    elif sys.stdout is None:
        raise UserError("output", "standard output is closed; give a file")
    else:
        yield sys.stdout.buffer


def _is_stdout(output: str) -> bool:
    try:
        return output == STDOUT or os.path.samestat(os.stat(output), os.fstat(1))
    except OSError:
        return False
