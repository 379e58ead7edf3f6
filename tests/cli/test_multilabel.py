"""Several labels per text by the command line, from the file to the answers."""

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
COLUMNS = ["--data.task", "multilabel", "--data.train_file", "mine.csv", "--data.label_columns", "[blame,praise]"]
LISTS = ["--data.validation_file", "mine.jsonl", "--data.label_column", "topics"]


@pytest.fixture
def own(tiny_encoder):
    """The options of a model of sentences of which `fine` ones have both labels and `dull` ones none."""
    words = [("good", ["praise"]), ("bad", ["blame"]), ("fine", ["praise", "blame"]), ("dull", [])]
    rows = [(f"the film is {'very ' * n}{word}", names) for n in range(12) for word, names in words]
    lists = [json.dumps({"text": text, "topics": names}) for text, names in rows]
    Path("mine.jsonl").write_text("\n".join(lists))
    flags = [f"{text},{int('blame' in names)},{int('praise' in names)}" for text, names in rows]
    Path("mine.csv").write_text("\n".join(["text,blame,praise", *flags]))
    return ["--model.encoder", tiny_encoder(), *PRECISE, "--model.learning_rate", "0.05", "--trainer.max_epochs", "2"]


def table(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_from_the_file_to_the_answers(own, capsys):
    smoothed = ["--model.class_weights", "balanced", "--model.label_smoothing", "0.1"]
    fit = ["fit", *own, *COLUMNS, "--data.validation_share", "0.25", *smoothed, "--run_name", "own"]
    assert main(fit) == 0
    said = capsys.readouterr().err
    assert "blame: 18, praise: 18; 9 without a label" in said
    assert "best micro_f1" in said
    assert fails(capsys, *fit, "--data.task", "custom") == "data.label_columns"

    model = LoRAClassifier.load_from_checkpoint(BEST[1])
    texts, true = zip(*(json.loads(line).values() for line in Path("mine.jsonl").read_text().splitlines()), strict=True)
    answers = [answer["labels"] for answer in model.predict(texts)]
    of_many = ManyAdapters({"own": BEST[1]}).predict(texts)
    assert [answer["labels"] for answer in of_many] == answers

    files = ["--errors", "errors.csv", "--metrics", "metrics.json", "--data.eval_batch_tokens", "64"]
    assert main(["validate", *BEST, *LISTS, *files, *PRECISE]) == 0
    wrong = {text: (sorted(names), found) for text, names, found in zip(texts, true, answers, strict=True)
             if sorted(names) != found}  # fmt: skip
    assert 0 < len(wrong) < 48
    rows = table("errors.csv")
    assert {row["text"]: (json.loads(row["label"]), json.loads(row["prediction"])) for row in rows} == wrong
    chances = [float(row["probability"]) for row in rows]
    assert chances == sorted(chances, reverse=True)
    metrics = json.loads(Path("metrics.json").read_text())["splits"]["validation"]
    assert metrics["exact_match"] == pytest.approx(1 - len(wrong) / 48)
    assert metrics["micro_f1"] == pytest.approx(metrics["micro"]["f1"])
    assert [row["support"] for row in metrics["classes"]] == [24, 24]
    assert "confusion" not in metrics

    for output in ("out.jsonl", "out.csv", "out.parquet"):
        assert main(["predict", *BEST, "--input", "mine.csv", "--output", output, *PRECISE]) == 0
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line["labels"] for line in lines] == answers
    assert pq.read_table("out.parquet").to_pylist() == lines
    cells = table("out.csv")
    assert [json.loads(row["labels"]) for row in cells] == answers
    assert float(cells[0]["probabilities.praise"]) == lines[0]["probabilities"]["praise"]


def test_joint_trials_are_trials_alone(own, monkeypatch):
    monkeypatch.setattr("lora_pl.cli.ablate.write_report", lambda folder: folder)
    files = ["--data.task", "multilabel", "--data.train_file", "mine.jsonl", *LISTS]
    study = [*own, *files, "--model.dropout", "0", "--ranks", "1", "2", "--seeds", "1"]
    for pack in ("1", "2"):
        assert main(["ablate", *study, "--pack", pack, "--output", pack]) == 0
    for trial in ("r1-s0", "r2-s0"):
        alone, joint = (torch.load(f"{pack}/trials/{trial}/last.ckpt", weights_only=True) for pack in "12")
        for name, tensor in alone["state_dict"].items():
            torch.testing.assert_close(joint["state_dict"][name], tensor, atol=1e-4, rtol=0)
