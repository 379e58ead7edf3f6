"""What the package costs before it does anything: which libraries are imported, by stages of one fresh process."""

import json
from dataclasses import fields
from inspect import signature

import pytest
from lightning.pytorch import Trainer

import lora_pl
from lora_pl.cli.predict_options import OF_TRAINER, Processes
from lora_pl.formats.exporting import export_checkpoint
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
LIGHT = """
import json, sys
from lora_pl.cli.main import main

def run(*arguments):
    code = main(list(arguments))
    assert code == 0, arguments
    return sorted(name for name in WATCHED if name in sys.modules)

WATCHED = ("lightning", "torchmetrics", "sklearn", "pandas", "datasets", "tensorboard", "matplotlib", "torchvision")
checkpoint, texts, adapter = sys.argv[1:]
found = {"params": run("params", "--ranks", "1")}
found["predict"] = run("predict", "--ckpt_path", checkpoint, "--input", texts, "--output", "one.jsonl")
found["predict --adapter"] = run("predict", "--adapter", "a=" + checkpoint, "--input", texts, "--output", "many.jsonl")
found["import"] = run("import", adapter, "--output", "imported.ckpt")
import lora_pl.cli.export
found["export"] = sorted(name for name in WATCHED if name in sys.modules)
json.dump(found, open("found.json", "w"))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> dict[str, list[str]]:
    done = run_script(SCRIPT, [], tmp_path_factory.mktemp("start"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("stage", ["import lora_pl", "--help", "--version", "fti", "fit --help"])
def test_brings_no_library_of_any_size(stage, imported):
    assert imported[stage] == []


@pytest.fixture(scope="module")
def imported_by_light_verbs(checkpoint, tmp_path_factory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("light")
    export_checkpoint(checkpoint, folder / "adapter", "adapter", sentences=1)
    (folder / "x.txt").write_text("the film is good\n")
    done = run_script(LIGHT, [str(checkpoint), "x.txt", "adapter"], folder)
    assert done.returncode == 0, done.stderr
    answers = [(folder / name).read_text() for name in ("one.jsonl", "many.jsonl")]
    assert ['"label"' in answer for answer in answers] == [True, True]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("verb", ["params", "predict", "predict --adapter", "import", "export"])
def test_a_verb_without_a_trainer_imports_no_lightning(verb, imported_by_light_verbs):
    """Of `export` the imports: where the sentences have labels, their metrics come by torchmetrics."""
    assert imported_by_light_verbs[verb] == []


END = """
import atexit, gc, sys
atexit.register(lambda: print("frozen" if gc.get_freeze_count() else "collected"))
if sys.argv[1:]:
    from lora_pl.cli.main import main
    main(["--version"])
    main(["--version"])
    assert not gc.get_freeze_count()  # what goes on after a command is collected
"""


@pytest.mark.parametrize(("arguments", "printed"), [([], ["collected"]), (["run"], ["frozen"])])
def test_the_process_of_a_command_ends_without_a_last_collection(arguments, printed, tmp_path):
    done = run_script(END, arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2:-1] == printed


def test_the_trainers_options_that_predict_ignores_are_all_the_others():
    used = {field.name for field in fields(Processes)}
    assert used | set(OF_TRAINER) == set(signature(Trainer).parameters)
    assert used.isdisjoint(OF_TRAINER)


def test_every_option_of_a_verb_brings_what_parses_it_alone(imported):
    """Transformers and matplotlib come with Lightning, by way of torchmetrics."""
    assert set(imported["fit --help all"]) <= {"torch", "lightning", "transformers", "matplotlib"}


def test_the_package_lists_its_names():
    assert set(lora_pl.__all__) < set(dir(lora_pl))
