"""The page on extending tells the truth: its examples run, and inherit the tests that it names."""

import os
import re
from pathlib import Path

import pytest

from tests.processes import run

ROOT = Path(__file__).resolve().parents[2]
INHERITED = {
    "gain": "tests/lora/test_variants.py",
    "ernie": "tests/encoder/test_architectures.py",
    "program": "tests/formats/test_formats.py",
    "snli": "tests/data/test_tasks.py",
}
"""The row of each example, and the tests over its table."""


def run_inherited_tests() -> int:
    os.chdir(ROOT)
    options = ["-v", "-n", "0", "-p", "tests.docs.examples", "-p", "no:cacheprovider"]
    # a row with the default of the other table: programs take seconds to trace
    chosen = f"({' or '.join(INHERITED)}) and not (program and (gain or dora or settings))"
    return pytest.main([*options, "-k", chosen, *INHERITED.values()])


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> dict[str, int]:
    """How many inherited tests passed for each example; all in one process, whose tables have the four rows."""
    printed = run(tmp_path_factory.mktemp("inherited"), run_inherited_tests)
    passed = [line for line in printed.splitlines() if " PASSED" in line]
    return {
        row: sum(line.startswith(path) and re.search(rf"\[.*{row}", line) is not None for line in passed)
        for row, path in INHERITED.items()
    }


@pytest.mark.parametrize("row", INHERITED)
def test_an_example_inherits_the_tests_of_its_table(row, ran):
    assert ran[row] >= 3
