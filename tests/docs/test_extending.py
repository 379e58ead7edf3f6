"""The page on extending tells the truth: its examples run, and inherit the tests that it names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "extending.md"
INHERITED = {
    "gain": "tests/lora/test_variants.py",
    "ernie": "tests/encoder/test_architectures.py",
    "program": "tests/formats/test_formats.py",
    "snli": "tests/data/test_tasks.py",
}
"""The row of each example, and the tests over its table."""


@pytest.fixture(scope="module")
def ran() -> dict[str, int]:
    """How many inherited tests passed for each example; all in one fresh process, whose tables have the four rows."""
    command = [sys.executable, "-m", "pytest", "-v", "-n", "0", "-p", "tests.docs.examples", "-p", "no:cacheprovider"]
    chosen = ["-k", " or ".join(INHERITED), *INHERITED.values()]
    done = subprocess.run([*command, *chosen], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = [line for line in done.stdout.splitlines() if " PASSED" in line]
    return {
        row: sum(line.startswith(path) and re.search(rf"\[.*{row}", line) is not None for line in passed)
        for row, path in INHERITED.items()
    }


@pytest.mark.parametrize("row", INHERITED)
def test_an_example_inherits_the_tests_of_its_table(row, ran):
    assert ran[row] >= 3


def test_the_page_names_files_that_exist():
    named = re.findall(r"`((?:lora_pl|tests|docs)/[\w/]+\.(?:py|md))`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 10
    assert not [path for path in named if not Path(ROOT, path).is_file()]
