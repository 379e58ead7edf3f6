"""Errors have keys that stay, and go from process to process."""

import ast
import pickle
import re
import signal
from pathlib import Path

import pytest

import lora_pl
from lora_pl.errors import UsageError, UserError, first_line
from lora_pl.lora import LoRAError
from lora_pl.training.resume.stop_signals import RunStopped

PACKAGE = Path(lora_pl.__file__).parent
KEY = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
NOT_LITERAL = {
    ("ablation/grid.py", "axis"),
    ("callbacks/error_list.py", "KEY"),
    ("cli/parser.py", "key"),
    ("cli/parser.py", "missing['key']"),
    ("data/parquet.py", "key"),
    ("lora/config.py", "field"),
    ("lora/injection.py", "field"),
    ("lora/names.py", "field"),
    ("predictions/output.py", "key"),
    ("storage/schema.py", "key"),
    ("training/explained.py", "found[1]"),
    ("training/run_lock.py", "key"),
}
"""Where the key is the name of an option or of a field, or comes from another process."""


def keys() -> list[tuple[str, ast.expr]]:
    """The first argument of every error that the package makes, and its file."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("UserError", "UsageError", "LoRAError"):
                assert len(node.args) == 2, f"{path}: {ast.unparse(node)}"
                found.append((path.relative_to(PACKAGE).as_posix(), node.args[0]))
    return found


def literal(key: ast.expr) -> str | None:
    """The key, with "x" for what an f-string puts in; None where it is no literal."""
    if isinstance(key, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "x" for part in key.values)
    return key.value if isinstance(key, ast.Constant) else None


def test_every_error_has_a_literal_key():
    found = keys()
    assert len(found) > 100
    wrong = [(file, ast.unparse(key)) for file, key in found if not KEY.fullmatch(literal(key) or "")]
    assert set(wrong) <= NOT_LITERAL


@pytest.mark.parametrize(
    "error",
    [
        UserError("data.row", "no row"),
        UsageError("config", "no file"),
        RunStopped(signal.SIGTERM, "saved"),
        LoRAError("r", "too large"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_its_way_between_processes(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_the_first_line_of_an_error():
    assert [first_line(error) for error in (ValueError("\n one\ntwo"), ValueError())] == ["one", "ValueError"]
