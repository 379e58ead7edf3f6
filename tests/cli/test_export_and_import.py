"""export and import as a user types them."""

import json
import re
from pathlib import Path

import pytest
import torch

from lora_pl.cli.main import main
from tests.cli.mistakes import fails
from tests.support import run_in_process


@pytest.mark.parametrize("format", ["hf", "adapter"])
def test_export_and_back(format, checkpoint, tmp_path):
    export = ["export", "--ckpt_path", str(checkpoint), "--format", format, "--output", "out"]
    done = run_in_process(export, tmp_path, check=True)
    assert re.search(rf"{format}: largest logit change \S+ \(tolerance \S+\), 0 of 48 predictions flipped", done.stderr)
    assert "accuracy" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert "export.taken: out" in run_in_process(export, tmp_path).stderr
    if format == "adapter":
        run_in_process(["import", "out"], tmp_path, check=True)
        imported = str(tmp_path / "checkpoints" / "out" / "best.ckpt")
        done = run_in_process(
            ["predict", "--ckpt_path", imported], tmp_path, check=True, text_input="the film is good\n"
        )
        expected = run_in_process(
            ["predict", "--ckpt_path", str(checkpoint)], tmp_path, text_input="the film is good\n"
        )
        assert json.loads(done.stdout) == json.loads(expected.stdout)


def test_an_imported_checkpoint_is_validated_and_exported(checkpoint, glue_folder, tmp_path):
    run_in_process(
        ["export", "--ckpt_path", str(checkpoint), "--format", "peft", "--output", "theirs"], tmp_path, check=True
    )
    done = run_in_process(["import", "theirs", "--output", "ours.ckpt"], tmp_path, check=True)
    assert "4 layers adapted (query, value), r = 4, alpha = 16; linear head for negative, positive" in done.stderr
    validate = ["validate", "--data.source", str(glue_folder), "--ckpt_path"]
    figures = [
        re.search(r"accuracy ([\d.]+)", run_in_process([*validate, path], tmp_path, check=True).stdout).group(1)
        for path in ("ours.ckpt", str(checkpoint))
    ]
    assert figures[0] == figures[1]
    run_in_process(["export", "--ckpt_path", "ours.ckpt", "--output", "hf"], tmp_path, check=True)
    assert (tmp_path / "hf" / "config.json").is_file()
    assert "hf: a whole model, which holds no adapter" in run_in_process(["import", "hf"], tmp_path).stderr


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["export"], "ckpt_path"),
        (["export", "--ckpt_path", "x.ckpt"], "output"),
        (["export", "--ckpt_path", "x.ckpt", "--output", "y", "--format", "tflite"], "format"),
        (["export", "--ckpt_path", "x.ckpt", "--output", "y", "--dtpye", "bfloat16"], "usage"),
        (["import"], "source"),
        (["import", "x.pt", "--lora_alhpa", "3"], "usage"),
    ],
)
def test_options(arguments, key, capsys):
    assert fails(capsys, *arguments, code=2) == key


def test_files(capsys, checkpoint, monkeypatch):
    assert fails(capsys, "export", "--ckpt_path", "x.ckpt", "--output", "y") == "checkpoint.missing"
    fails(capsys, "import", "x.pt")
    torch.save({"query.lora_A": torch.ones(1, 1)}, "x.pt")
    assert main(["predict", "--ckpt_path", "x.pt"]) == 1
    assert "adapter lora_pl import makes a checkpoint" in capsys.readouterr().err
    Path("taken").mkdir()
    Path("taken/file").touch()
    fails(capsys, "export", "--ckpt_path", str(checkpoint), "--output", "taken")
    fails(capsys, "export", "--ckpt_path", str(checkpoint), "--output", "no/such/folder")
    export = ["export", "--ckpt_path", str(checkpoint), "--format", "adapter", "--output", "film-v0.1"]
    assert fails(capsys, *export, "--sentences", "-1") == "sentences"
    assert main(export) == main(["import", "film-v0.1"]) == 0
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    assert main(["import", "film-v0.1", "--output=~/film.ckpt"]) == 0
    assert Path("checkpoints/film-v0.1/best.ckpt").is_file()
    assert Path("home/film.ckpt").is_file()
    Path("home/films.txt").write_text("fine\n")
    for asked in ("--ckpt_path=~/film.ckpt", "--adapter=a=~/film.ckpt"):
        assert main(["predict", asked, "--input=~/films.txt", "--output=~/answers.jsonl"]) == 0
        assert Path("home/answers.jsonl").read_text().count("fine") == 1
    assert main(["validate", "--ckpt_path", str(checkpoint), "--metrics=~/m.json", "--errors=~/errors.csv"]) == 0
    assert Path("home/m.json").is_file()
    assert Path("home/errors.csv").is_file()
