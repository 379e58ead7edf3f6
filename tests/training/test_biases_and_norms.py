"""`--model.train_biases` and `--model.train_norms` as a user types them: a run, resumed, used, exported, refused."""

import json
import re
from pathlib import Path

import pytest
import torch

from lora_pl.cli.main import main
from lora_pl.storage.checkpoint import read_checkpoint
from tests.cli.mistakes import fails
from tests.training.test_resume import epochs

MINE = Path("checkpoints/mine")
EXPORT = ["--trainer.callbacks+", "lora_pl.callbacks.merged_export.MergedExport"]


@pytest.fixture
def fit(tiny_encoder, glue_folder):
    return ["fit", "--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--data.batch_size", "8",
            "--model.learning_rate", "3e-2", "--model.train_biases", "all", "--model.train_norms", "true"]  # fmt: skip


def test_a_resumed_run_is_the_run_that_was_not_stopped(fit):
    fit = [*fit, "--trainer.precision", "bf16-mixed"]
    assert main([*fit, *epochs(1), "--run_name", "mine"]) == 0
    assert main(["fit", "--run_name", "mine", "--resume", *epochs(2)]) == 0
    assert main([*fit, *epochs(2), "--run_name", "other"]) == 0
    one, other = (read_checkpoint(folder / "last.ckpt") for folder in (MINE, MINE.with_name("other")))
    names = [name for name in one["state_dict"] if name.endswith(("LayerNorm.weight", "key.bias", "query.bias"))]
    assert len(names) == 5 + 2 + 2
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, tensor in one["state_dict"].items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, other["state_dict"][name]), name


def test_every_verb_takes_the_checkpoint(fit, capsys):
    assert main([*fit, *epochs(2), *EXPORT, "--run_name", "mine"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"biases and norms +\S* *384 ", said)
    assert "merged export: largest logit change" in said
    Path("x.txt").write_text("the film is good\nthe plot is dull\n")
    best = ["--ckpt_path", str(MINE / "best.ckpt")]
    assert main(["validate", *best]) == 0
    capsys.readouterr()
    assert main(["predict", *best, "--input", "x.txt"]) == 0
    expected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main(["export", *best, "--format", "adapter", "--output", "folder"]) == 0
    assert main(["import", "folder", "--output", "imported.ckpt"]) == 0
    assert "train_biases all, train_norms True" in capsys.readouterr().err
    assert main(["predict", "--ckpt_path", "imported.ckpt", "--input", "x.txt"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == expected


def test_what_they_do_not_go_with(fit, capsys):
    assert main([*fit, *epochs(1), "--run_name", "mine"]) == 0
    capsys.readouterr()
    last = str(MINE / "last.ckpt")
    assert fails(capsys, "predict", "--adapter", f"a={last}") == "adapter"
    assert fails(capsys, *fit, "--model.method", "head") == "model.train_biases"
    assert fails(capsys, *fit, *epochs(2), "--run_name", "mine", "--resume", "--model.train_norms", "false") == "resume"
    assert fails(capsys, *fit, "--model.train_biases", "lora", "--model.start_from", last) == "model.start_from"
    assert fails(capsys, "validate", "--ckpt_path", last, "--model.train_norms", "false") == "checkpoint.settings"
    assert fails(capsys, *fit, "--model.train_biases", "some", code=2) == "model.train_biases"
