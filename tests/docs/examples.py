"""Runs the examples of docs/extending.md before tests are collected: `pytest -p tests.docs.examples`.

Their rows are in the tables then, so that the tests over the tables run over them too.
"""

import re
import sys
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


def code_blocks() -> list[str]:
    """The page's Python, block by block."""
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


for number, block in enumerate(code_blocks(), 1):
    module = sys.modules[f"example_{number}"] = ModuleType(f"example_{number}")  # a module, so that classes pickle
    exec(compile(block, f"{PAGE.name}, example {number}", "exec"), vars(module))
