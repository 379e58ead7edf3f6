"""Commands that fail as they should."""

import re
from pathlib import Path

from lora_pl.cli.main import main

ERROR = re.compile(r"^lora_pl(?: \w+)?: (?P<key>[\w.]+): (?P<message>.+)", re.MULTILINE | re.DOTALL)


def error_of(stderr: str) -> tuple[str, str]:
    """The key and the message that a command has ended with: one or two lines, no traceback."""
    found = ERROR.search(stderr)
    assert found is not None, stderr
    assert "Traceback" not in stderr
    assert len(found["message"].strip().splitlines()) <= 2
    return found["key"], found["message"].strip()


def fails(capsys, *arguments: str, code: int = 1) -> str:
    """The key of the error with which the command ends; it leaves no output."""
    before = set(Path.cwd().rglob("*"))
    assert main(list(arguments)) == code
    left = {path for path in Path.cwd().rglob("*") if path.is_file()} - before
    assert not {path for path in left if path.suffix in (".ckpt", ".jsonl", ".parquet")}
    return error_of(capsys.readouterr().err)[0]
