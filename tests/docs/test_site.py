"""The site builds without a warning: every page in the navigation, every link and anchor there."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")

ROOT = Path(__file__).resolve().parents[2]


def test_the_site_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    method = (tmp_path / "method.html").read_text(encoding="utf-8")
    assert "<math" in method
    assert "arithmatex" not in method
