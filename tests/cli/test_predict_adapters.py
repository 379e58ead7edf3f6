import json

import pytest

from lora_pl.cli.main import main
from lora_pl.model.classifier import LoRAClassifier
from tests.cli.mistakes import error_of
from tests.support import TINY_TERMS, rounding, run_in_process


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text,who\nthe film is good,first\nthe cast is dull,second\n", encoding="utf-8")
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_everyone_or_each_its_own(checkpoint, table, tmp_path):
    adapters = ["--adapter", f"first={checkpoint}", f"--adapter=second={checkpoint}"]
    expected = LoRAClassifier.load_from_checkpoint(checkpoint).predict(["the film is good", "the cast is dull"])
    output = tmp_path / "rows.jsonl"
    run_in_process(["predict", *adapters, "--input", str(table), "--output", str(output)], tmp_path, check=True)
    asked = [(row["text"], row["adapter"]) for row in rows(output)]
    assert asked == [(text, who) for text in ("the film is good", "the cast is dull") for who in ("first", "second")]
    done = run_in_process(
        ["predict", *adapters, "--input", str(table), "--adapter_column", "who", "--keep_columns", "[who]"],
        tmp_path,
        check=True,
    )
    own = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["adapter"], row["who"]) for row in own] == [("first", "first"), ("second", "second")]
    scores = [answer["score"] for answer in expected]
    assert [row["score"] for row in own] == pytest.approx(scores, abs=rounding(TINY_TERMS))


@pytest.mark.parametrize(
    ("arguments", "key", "said"),
    [
        (["--adapter", "first"], "adapter", "NAME=CHECKPOINT"),
        (["--adapter", "first={checkpoint}", "--ckpt_path", "{checkpoint}"], "adapter", "--adapter or --ckpt_path"),
        (["--adapter", "first=nowhere.ckpt"], "checkpoint.missing", "nowhere.ckpt"),
        (
            ["--adapter", "first={checkpoint}", "--adapter_column", "who"],
            "adapter",
            "texts.csv, line 3: there is no",
        ),
        (["--adapter", "first={checkpoint}", "--text_column", "sentence"], "data.column", "sentence"),
        (["--adapter", "first={checkpoint}", "--output", "rows.parquet"], "output", "JSON lines"),
        (["--adapter", "first={checkpoint}", "--output", "rows.CSV"], "output", "JSON lines"),
        (["--adapter", "first={checkpoint}", "--keep_columns", "[adapter,input_adapter]"], "keep_columns", "different"),
    ],
)
def test_mistakes(arguments, key, said, checkpoint, table, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [argument.format(checkpoint=checkpoint) for argument in arguments]
    assert main(["predict", "--input", str(table), *given]) != 0
    told = capsys.readouterr().err
    assert error_of(told)[0] == key
    assert said in told
    assert list(tmp_path.iterdir()) == [table]
