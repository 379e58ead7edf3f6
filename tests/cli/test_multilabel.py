"""Several labels per text by the command line, from the files to the exports."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from lora_pl import LoRAClassifier
from lora_pl.cli.main import main
from lora_pl.model.many_adapters import ManyAdapters
from tests.cli.mistakes import fails

BEST = ["--ckpt_path", "checkpoints/own/best.ckpt"]
PRECISE = ["--trainer.precision", "32-true", "--trainer.accelerator", "cpu"]


@pytest.fixture
def own(tiny_encoder):
    """The options of a fit of a file in which `fine` goes with both labels and `dull` with none."""
    words = [("good", ["praise"]), ("bad", ["blame"]), ("fine", ["praise", "blame"]), ("dull", [])]
    rows = [{"text": f"the film is {'very ' * n}{word}", "topics": names} for n in range(12) for word, names in words]
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with open("mine.csv", "w") as file:
        file.write("text,blame,praise\n")
        file.writelines(
            f"{row['text']},{int('blame' in row['topics'])},{int('praise' in row['topics'])}\n" for row in rows
        )
    files = ["--data.task", "multilabel", "--data.train_file", "mine.jsonl", "--data.label_column", "topics"]
    held = ["--data.validation_share", "0.25", "--model.class_weights", "balanced", "--model.label_smoothing", "0.1"]
    return ["fit", "--model.encoder", tiny_encoder(), *files, *held, *PRECISE, "--model.learning_rate", "0.05"]


def table(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_from_the_file_to_the_answers(own, capsys):
    assert main([*own, "--run_name", "own", "--trainer.max_epochs", "2"]) == 0
    said = capsys.readouterr().err
    assert "blame 18, praise 18; 9 without a label" in said
    assert "best micro_f1" in said

    files = ["--errors", "errors.csv", "--metrics", "metrics.json", "--data.eval_batch_tokens", "64", *PRECISE]
    assert (
        main(
            ["validate", *BEST, *files, "--data.validation_file", "mine.csv", "--data.label_columns", "[blame,praise]"]
        )
        == 0
    )
    model = LoRAClassifier.load_from_checkpoint(BEST[1])
    rows = table("mine.csv")
    answers = model.predict([row["text"] for row in rows])
    true = [[name for name in model.label_names if row[name] == "1"] for row in rows]
    wrong = {row["text"]: (names, answer["labels"]) for row, names, answer in zip(rows, true, answers, strict=True)
             if names != answer["labels"]}  # fmt: skip
    assert 0 < len(wrong) < 48
    listed = table("errors.csv")
    assert {row["text"]: (json.loads(row["label"]), json.loads(row["prediction"])) for row in listed} == wrong
    assert [row["probability"] for row in listed] == sorted((row["probability"] for row in listed), reverse=True)
    found = json.loads(Path("metrics.json").read_text())["splits"]["validation"]
    assert found["exact_match"] == pytest.approx(1 - len(wrong) / 48)
    assert found["micro_f1"] == pytest.approx(found["micro"]["f1"])
    assert [row["support"] for row in found["classes"]] == [24, 24]
    assert "confusion" not in found

    for output in ("out.jsonl", "out.csv", "out.parquet"):
        assert main(["predict", *BEST, "--input", "mine.csv", "--output", output, *PRECISE]) == 0
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line["labels"] for line in lines] == [answer["labels"] for answer in answers]
    assert pq.read_table("out.parquet").to_pylist() == lines
    cells = table("out.csv")
    assert [json.loads(row["labels"]) for row in cells] == [line["labels"] for line in lines]
    assert float(cells[0]["probabilities.praise"]) == lines[0]["probabilities"]["praise"]
    many = ManyAdapters({"own": BEST[1]}).predict([row["text"] for row in rows[:3]])
    assert [answer["labels"] for answer in many] == [answer["labels"] for answer in answers[:3]]

    assert (
        fails(capsys, *own, "--run_name", "own", "--data.label_columns", "[blame]", "--data.task", "custom")
        == "data.label_columns"
    )


def test_joint_trials_are_trials_alone(own, monkeypatch):
    monkeypatch.setattr("lora_pl.cli.ablate.write_report", lambda folder: folder)
    study = [*own[1:3], *own[3:9], "--data.validation_file", "mine.jsonl", *PRECISE, "--trainer.max_epochs", "2"]
    study += ["--model.dropout", "0", "--ranks", "1", "2", "--seeds", "1"]
    for pack in ("1", "2"):
        assert main(["ablate", *study, "--pack", pack, "--output", pack]) == 0
    for trial in ("r1-s0", "r2-s0"):
        alone, joint = (torch.load(f"{pack}/trials/{trial}/last.ckpt", weights_only=True) for pack in "12")
        for name, tensor in alone["state_dict"].items():
            torch.testing.assert_close(joint["state_dict"][name], tensor, atol=1e-4, rtol=0)
