"""One's own sentences by the command line, from the split to the errors."""

import json
import shlex
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch

from lora_pl.ablation.table import ResultTable
from lora_pl.callbacks.evaluation_report import EvaluationReport
from lora_pl.cli.main import main
from lora_pl.data.rows import read_rows
from lora_pl.training.resume.exact_resume import RESUME_KEY
from tests.cli.mistakes import fails


@pytest.fixture
def own(tiny_encoder):
    words = [("good", "happy"), ("bad", "sad"), ("fine", "happy"), ("dull", "sad")]
    lines = [f"the film is {word} {'very ' * n},{'a ' * n}plot,{label}" for n in range(1, 7) for word, label in words]
    Path("my films.csv").write_text("\n".join(["the review,summary,stars", *lines]) + "\n")
    flags = ["--model.encoder", tiny_encoder(), "--data.train_file", "my films.csv", "--trainer.max_epochs", "1"]
    return [*flags, "--data.text_column", "the review", "--data.label_column", "stars", "--data.batch_size", "8"]


def fit(own: list[str], *flags: str) -> str:
    assert main(["fit", *own, "--run_name", "own", *flags]) == 0
    return "checkpoints/own/last.ckpt"


def test_a_run_keeps_its_held_out_sentences(own, capsys, monkeypatch):
    share = ["--data.validation_share", "0.25", "--seed_everything", "5"]
    checkpoint = fit(own, *share)
    fingerprint = torch.load(checkpoint, weights_only=True)[RESUME_KEY]["conditions"]["the validation data"]
    predict = ["predict", "--ckpt_path", checkpoint, "--input", "my films.csv", "--output", "x.jsonl"]
    assert main(predict) == 0
    assert main([*predict, "--config", "checkpoints/own/config.yaml"]) == 0
    for flag in ("--data.folds=3", "--data.validation_share=0.5", "--seed_everything=1"):
        assert fails(capsys, *predict, flag, code=2) == "usage"
    found = []
    noting = lambda self, trainer, *_, stage: found.append(trainer.datamodule.fingerprints())  # noqa: E731
    monkeypatch.setattr(EvaluationReport, "setup", noting)
    arguments = ["validate", "--ckpt_path", checkpoint, "--errors", "errors.jsonl"]
    assert main(arguments) == 0
    assert found == [{"validation": fingerprint}]
    texts = [text for _, (text,) in read_rows("my films.csv", ["the review"])]
    errors = [json.loads(line) for line in Path("errors.jsonl").read_text().splitlines()]
    assert errors
    assert all(texts[error["row"] - 1] == error["text"] for error in errors)
    assert main([*arguments, "--data.validation_file", "my films.csv"]) == 0
    assert " 24 sentences in errors.jsonl" in capsys.readouterr().err
    again = ["fit", *own, "--run_name", "own", "--resume", *share, "--data.validation_share", "0.5"]
    assert fails(capsys, *again) == "resume"


def test_the_last_line_is_a_command_that_works(own, capsys):
    fit(own, "--data.validation_share", "0.25", "--data.text_pair_column", "summary")
    line = capsys.readouterr().err.rpartition("predict     lora_pl ")[2].strip()
    assert "--data.text_column 'the review' --data.text_pair_column summary" in line
    assert main([*shlex.split(line), "--output", "x.jsonl"]) == 0
    rows = [json.loads(text) for text in Path("x.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert rows[0]["text_pair"] == "a plot"
    assert main(["export", "--ckpt_path", "checkpoints/own/last.ckpt", "--format", "adapter", "--output", "out"]) == 0
    assert main(["import", "out"]) == 0
    for number, given in enumerate(("--ckpt_path=", "--adapter=a=")):
        output = f"{number}.jsonl"
        flags = [f"{given}checkpoints/out/best.ckpt", "--input", "my films.csv", "--output", output]
        assert main(["predict", *flags]) == 0
        again = [json.loads(text) for text in Path(output).read_text().splitlines()]
        assert [row["label"] for row in again] == [row["label"] for row in rows]
    record = json.loads(Path("out/lora_pl.json").read_text())
    record["datamodule_hyper_parameters"]["text_column"] = 3
    Path("out/lora_pl.json").write_text(json.dumps(record))
    assert fails(capsys, "import", "out", "--output", "other.ckpt") == "adapter.settings"


def test_a_third_file_tests(own, capsys):
    """It takes no part in training, and may be given when the checkpoint is there."""
    Path("third.csv").write_text("the review,summary,stars\nthe film is good,a plot,happy\nthe plot is dull,,sad\n")
    Path("other.csv").write_text("the review,summary,stars\nthe film is good,a plot,angry\n")
    checkpoint = fit(own, "--data.validation_share", "0.25", "--data.test_file", "third.csv")
    assert "--input 'my films.csv'" in capsys.readouterr().err
    test = ["test", "--ckpt_path", checkpoint, "--metrics", "m.json", "--errors", "errors.csv"]
    for flags, split, count in (
        ([], "test", 2),
        (["--data.test_file", "my films.csv"], "test", 24),
        (["--data.validation_file", "my films.csv"], "validation", 24),
        (["--data.test_file", "null"], "validation", 6),
    ):
        assert main([*test, *flags]) == 0
        said = capsys.readouterr().err
        assert f"{split}: {count} sentences" in said
        assert f" of {count} sentences in errors.csv" in said
        assert [*json.loads(Path("m.json").read_text())["splits"]] == [split]
    assert fails(capsys, *test, "--data.test_file", "other.csv") == "data.label"
    assert fails(capsys, *test, "--data.test_file", "none.csv") == "data.missing"
    assert main(["validate", "--ckpt_path", checkpoint]) == 0
    assert "validation: 6 sentences" in capsys.readouterr().err
    more = ["--data.validation_share", "0.25", "--resume", "--data.test_file", "my films.csv"]
    assert main(["fit", *own, "--run_name", "own", *more]) == 0


@pytest.mark.usefixtures("empty_figures")
def test_folds_are_an_axis(own, capsys):
    """The report has their mean."""
    study = ["ablate", *own, "--vary", "data.fold", "0", "1", "--data.folds", "2", "--seeds", "1", "--pack", "2"]
    assert main([*study, "--output", "study", "--early_stopping_patience", "1"]) == 0
    said = capsys.readouterr().err
    assert all(f"fold-{fold}-s0: accuracy" in said for fold in (0, 1))
    held = [torch.load(f"study/trials/fold-{fold}-s0/last.ckpt", weights_only=True) for fold in (0, 1)]
    first, second = (checkpoint[RESUME_KEY]["conditions"] for checkpoint in held)
    assert first["the validation data"] == second["the train data"]
    (row,) = json.loads(Path("study/summary.json").read_text())["measured"]
    found = [each["last"] for each in ResultTable(Path("study")).rows]
    assert (row["name"], row["seeds"], row["folds"]) == ("", 1, 2)
    assert (row["last"], row["last_std"]) == pytest.approx((mean(found), stdev(found)))
    assert "1, 2 folds each" in Path("study/report.html").read_text()
