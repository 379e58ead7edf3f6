"""Long files: in constant memory, in parts that outlive a stop."""

import json
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from lora_pl.cli.main import main
from lora_pl.data import texts
from lora_pl.data.texts import TextStream
from lora_pl.errors import UserError
from lora_pl.model.many_adapters import ManyAdapters
from lora_pl.model.plain import PlainClassifier
from lora_pl.predictions.parts import Parts
from lora_pl.predictions.writers import WRITERS, write_rows

TEXTS = [f"the film {number} is good" for number in range(100)]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(texts, "CHUNK", 3)
    monkeypatch.setattr(texts, "SHARD", 4)


@pytest.fixture
def predict(checkpoint):
    Path("x.txt").write_text("\n".join(TEXTS) + "\n")
    return ["predict", "--ckpt_path", str(checkpoint), "--input", "x.txt", "--output"]


def rows_of(name: str) -> list[dict]:
    if name.endswith(".parquet"):
        return pq.read_table(name).to_pylist()
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_a_stopped_prediction_goes_on_with_the_parts_that_are_missing(predict, capsys, monkeypatch):
    """Here of a table; several adapters write lines."""
    assert main([*predict, "whole.jsonl"]) == 0
    name = "y.parquet"
    asked, answer = [], PlainClassifier.tokenize

    def stop(self, batch, *given):
        asked.extend(batch)
        if len(asked) == 60:
            raise UserError("stopped", "by a test")
        return answer(self, batch, *given)

    monkeypatch.setattr(PlainClassifier, "tokenize", stop)
    assert main([*predict, name]) == 1
    assert not Path(name).exists()
    assert "48 predictions are in" in capsys.readouterr().err
    assert main([*predict, name]) == 0
    assert asked[60:] == TEXTS[48:]
    assert rows_of(name) == rows_of("whole.jsonl")
    assert [row["text"] for row in rows_of(name)] == TEXTS
    assert not Path(f"{name}.parts").exists()


def test_sigterm_stops_at_once_and_keeps_what_is_whole(predict, capsys, monkeypatch):
    answer, before = PlainClassifier.tokenize, signal.getsignal(signal.SIGTERM)

    def stop(self, batch, *given):
        if TEXTS[30] in batch:
            signal.raise_signal(signal.SIGTERM)
        return answer(self, batch, *given)

    monkeypatch.setattr(PlainClassifier, "tokenize", stop)
    assert main([*predict, "y.jsonl"]) == 128 + signal.SIGTERM
    assert "24 predictions are in y.jsonl.parts; the same command resumes" in capsys.readouterr().err
    assert {path.name for path in Path("y.jsonl.parts").iterdir()} == {"plan.json", "00000000.jsonl", "00000001.jsonl"}
    assert signal.getsignal(signal.SIGTERM) == before


def test_several_adapters_go_on_too(predict, monkeypatch):
    given = ["predict", "--adapter", f"a={predict[2]}", f"--adapter=b={predict[2]}", *predict[3:], "y.jsonl"]
    answer, asked = ManyAdapters.tokenize, []

    def stop(self, texts, names):
        asked.append(list(texts))
        if len(asked) == 10:
            raise UserError("stopped", "by a test")
        return answer(self, texts, names)

    monkeypatch.setattr(ManyAdapters, "tokenize", stop)
    assert main(given) == 1
    assert main(given) == 0
    assert asked[10][0] == TEXTS[24]
    assert [row["text"] for row in rows_of("y.jsonl")] == [text for text in TEXTS for _ in "ab"]
    assert [row["adapter"] for row in rows_of("y.jsonl")] == ["a", "b"] * len(TEXTS)


def test_no_text_gives_no_row_and_the_columns_that_rows_would_have(predict):
    columns = {}
    for text in ("", "fine,7\n"):
        Path("x.csv").write_text("sentence,id\n" + text)
        for name in ("y.jsonl", "y.csv", "y.parquet"):
            assert main([*predict[:3], "--input", "x.csv", "--keep_columns=[id]", "--output", name]) == 0
        assert len(rows_of("y.jsonl")) == pq.read_metadata("y.parquet").num_rows == len(text.splitlines())
        header = Path("y.csv").read_text().splitlines()[0]
        columns[text] = header, pq.read_schema("y.parquet")
    assert columns[""] == columns["fine,7\n"]
    assert header == "text,label,score,id,probabilities.negative,probabilities.positive"


@pytest.mark.parametrize(
    "row",
    [{"text": "x", "score": 0.5}, {"text": "x", "score": 0.5, "probabilities": "kept"},
     {"text": "x", "labels": [], "probabilities": {"a": 0.5}}],
)  # fmt: skip
def test_a_table_without_rows_has_the_columns_of_the_example(row):
    for rows in ([], [row]):
        for ending in WRITERS:
            write_rows(f"{len(rows)}{ending}", rows, row)
    assert Path("0.csv").read_text() == Path("1.csv").read_text().splitlines(keepends=True)[0]
    assert pq.read_schema("0.parquet") == pq.read_schema("1.parquet")
    assert pq.read_table("1.parquet").to_pylist() == rows_of("1.jsonl") == [row]
    assert Path("0.jsonl").read_text() == ""


def test_parts_of_another_input_are_not_taken(predict, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "join", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main([*predict, "y.jsonl"])
    Path("x.txt").write_text("\n".join(reversed(TEXTS)) + "\n")
    assert main([*predict, "y.jsonl"]) == 0
    assert "is of other texts or another checkpoint" in capsys.readouterr().err
    assert [row["text"] for row in rows_of("y.jsonl")] == TEXTS[::-1]


def test_long_texts_are_counted_or_refused(predict, capsys):
    Path("x.txt").write_text("\n".join([*TEXTS[:5], "a very good film", "bad " * 9]) + "\n")
    assert main([*predict, "y.jsonl", "--data.max_length", "8"]) == 0
    assert capsys.readouterr().err.endswith("7 predictions in y.jsonl; 1 of 7 texts cut at 8 tokens\n")
    assert main([*predict, "z.jsonl", "--data.max_length", "8", "--data.too_long", "refuse"]) == 1
    assert "data.too_long: x.txt, line 7: longer than 8 tokens" in capsys.readouterr().err
    assert not Path("z.jsonl").exists()


def test_texts_that_several_adapters_cut_are_counted_too(predict, checkpoint, capsys):
    stored = torch.load(checkpoint, weights_only=True)
    torch.save({**stored, "hyper_parameters": {**stored["hyper_parameters"], "max_length": 8}}, "short.ckpt")
    Path("x.txt").write_text("\n".join([*TEXTS[:5], "bad " * 9, "bad " * 99]) + "\n")
    given = ["--adapter=long=" + predict[2], "--adapter=short=short.ckpt", *predict[3:], "y.jsonl"]
    assert main(["predict", *given]) == 0
    length = min(stored["hyper_parameters"]["max_length"], ManyAdapters({"long": checkpoint}).base.max_tokens)
    told = f"14 predictions in y.jsonl; 3 of 14 texts cut at 8 or {length} tokens\n"
    assert capsys.readouterr().err.endswith(told)


def test_blank_lines_of_a_table_are_counted(predict, capsys):
    Path("x.csv").write_text("sentence\n" + "\n\n".join(TEXTS[:3]) + "\n")
    given = ["--input", "x.csv", "--output", "y.jsonl"]
    for asked in (predict[:3], ["predict", f"--adapter=a={predict[2]}", "--text_column", "sentence"]):
        assert main([*asked, *given]) == 0
        assert capsys.readouterr().err.endswith("3 predictions in y.jsonl; 2 empty rows skipped\n")


def test_the_trainers_options_without_effect_are_reported(predict, capsys):
    """They are read, since configurations have them, but never ignored without a word."""
    assert main([*predict, "y.jsonl", "--trainer.limit_predict_batches", "1", "--trainer.accelerator=cpu"]) == 0
    said = capsys.readouterr().err
    assert "--trainer.limit_predict_batches: without effect" in said
    assert "accelerator" not in said
    assert len(rows_of("y.jsonl")) == len(TEXTS)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_neither_overlap_nor_leave_gaps(world):
    Path("x.txt").write_text("\n".join(TEXTS) + "\n")
    seen = []
    for rank in range(world):
        shards = TextStream("x.txt", ["text"]).shards(lambda shard, rank=rank: shard % world == rank)
        seen += [text for _, chunks in shards for chunk in chunks for text in chunk]
    assert sorted(seen) == sorted(TEXTS)


@pytest.mark.parametrize("format", [None, "csv"])
def test_a_file_that_is_called_like_standard_input(format, monkeypatch):
    Path("-").write_text("text\nfine\n" if format else "fine\n")
    monkeypatch.setattr("sys.stdin", None)
    assert list(TextStream("./-", ["text"], format)) == [["fine"]]


@pytest.mark.parametrize("asked", ["--ckpt_path={}", "--adapter=a={}"])
def test_a_command_reads_that_file(asked, checkpoint, monkeypatch, capsys):
    Path("-").write_text("fine\n")
    monkeypatch.setattr("sys.stdin", None)
    assert main(["predict", asked.format(checkpoint), "--input", "./-"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "fine"
