"""What the package costs before it does anything: which libraries are imported, by stages of one fresh process."""

import json

import pytest

from tests.support import run_script

SCRIPT = """
import contextlib, io, json, sys

HEAVY = {"torch", "lightning", "transformers", "datasets", "pyarrow", "matplotlib", "ray", "onnxruntime", "peft"}
stages = {}
import lora_pl
stages["import lora_pl"] = sorted(HEAVY & set(sys.modules))
from lora_pl.cli.main import main
for arguments in (["--help"], ["--version"], ["fti"], ["fit", "--help"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(arguments)
    stages[" ".join(arguments)] = sorted(HEAVY & set(sys.modules))
with contextlib.redirect_stdout(io.StringIO()):
    main(["fit", "--help", "all"])
stages["fit --help all"] = sorted(HEAVY & set(sys.modules))
print(json.dumps(stages))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> dict[str, list[str]]:
    done = run_script(SCRIPT, [], tmp_path_factory.mktemp("start"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("stage", ["import lora_pl", "--help", "--version", "fti", "fit --help"])
def test_brings_no_library_of_any_size(stage, imported):
    assert imported[stage] == []


def test_every_option_of_a_verb_brings_what_parses_it_alone(imported):
    """Transformers and matplotlib come with Lightning, by way of torchmetrics."""
    assert set(imported["fit --help all"]) <= {"torch", "lightning", "transformers", "matplotlib"}
