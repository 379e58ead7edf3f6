"""Long files: in constant memory, in parts that outlive a stop."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_pl.callbacks import prediction_writer
from lora_pl.cli.main import main
from lora_pl.data import texts
from lora_pl.data.rows import stream_rows
from lora_pl.data.texts import TextStream
from lora_pl.errors import UserError
from lora_pl.model.classifier import LoRAClassifier

TEXTS = [f"the film {number} is good" for number in range(100)]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    for module in (texts, prediction_writer):
        monkeypatch.setattr(module, "CHUNK", 3)
        monkeypatch.setattr(module, "SHARD", 4)


@pytest.fixture
def predict(checkpoint):
    Path("x.txt").write_text("\n".join(TEXTS) + "\n")
    return ["predict", "--ckpt_path", str(checkpoint), "--input", "x.txt", "--output"]


def rows_of(name: str) -> list[dict]:
    if name.endswith(".parquet"):
        return pq.read_table(name).to_pylist()
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


@pytest.mark.parametrize("name", ["y.jsonl", "y.parquet"])
def test_a_stopped_prediction_goes_on_with_the_parts_that_are_missing(name, predict, capsys, monkeypatch):
    assert main([*predict, "whole" + name]) == 0
    asked, answer = [], LoRAClassifier.predict_step

    def stop(self, batch, batch_idx=0):
        asked.extend(batch)
        if len(asked) == 60:
            raise UserError("stopped")
        return answer(self, batch, batch_idx)

    monkeypatch.setattr(LoRAClassifier, "predict_step", stop)
    assert main([*predict, name]) == 1
    assert not Path(name).exists()
    assert "48 predictions are in" in capsys.readouterr().err
    assert main([*predict, name]) == 0
    assert asked[60:] == TEXTS[48:]
    assert rows_of(name) == rows_of("whole" + name)
    assert [row["text"] for row in rows_of(name)] == TEXTS
    assert not Path(f"{name}.parts").exists()


def test_parts_of_another_input_are_not_taken(predict, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(prediction_writer.PredictionWriter, "_join", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main([*predict, "y.jsonl"])
    Path("x.txt").write_text("\n".join(reversed(TEXTS)) + "\n")
    assert main([*predict, "y.jsonl"]) == 0
    assert "is of other texts or another checkpoint" in capsys.readouterr().err
    assert [row["text"] for row in rows_of("y.jsonl")] == TEXTS[::-1]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_neither_overlap_nor_leave_gaps(world):
    Path("x.txt").write_text("\n".join(TEXTS) + "\n")
    seen = []
    for rank in range(world):
        stream = TextStream("x.txt", ["text"])
        stream.wanted = lambda shard, rank=rank: shard % world == rank
        seen += [text for chunk in stream for text in chunk]
    assert sorted(seen) == sorted(TEXTS)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_tables_are_streamed_as_they_are_written(ending, tmp_path):
    values = ["007", "NA", 'a "quoted" word', "", "1e5", "zwölf"]
    path = tmp_path / f"x{ending}"
    if ending == ".parquet":
        pq.write_table(pa.table({"id": list(range(6)), "text": values}), path)
    elif ending in (".jsonl", ".json"):
        path.write_text("".join(json.dumps({"id": 1, "text": value}) + "\n" for value in values))
    elif ending == ".tsv":
        path.write_text("id\ttext\n" + "".join(f"1\t{value}\n" for value in values))
    else:
        path.write_text("id,text\n" + "".join('1,"{}"\n'.format(value.replace('"', '""')) for value in values))
    assert [text for (text,) in stream_rows(path, ["text"])] == values


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", "id,text\n1\n", "x.csv, line 2: expected 2 columns, got 1"),
        ("x.csv", 'text\n"open\n' + "x\n" * 9, "x.csv, line 11: could not be read as csv"),
        ("x.csv", "id\n1\n", "x.csv: no column 'text'; there are: id"),
        ("x.csv", "", "x.csv: the file is empty"),
        ("x.jsonl", '{"text": "a"}\n{"text"\n', "x.jsonl, line 2: could not be read as json"),
        ("x.jsonl", '{"text": "a"}\n{}\n', "x.jsonl, line 2: no column 'text'"),
        ("x.jsonl", "[" * 100_000, "x.jsonl, line 1: could not be read as json"),
        ("x.jsonl", '{"text": {"a": 1}}\n', "x.jsonl, line 1: expected a text, got dict"),
        ("x.tsv", "text\n" + "a" * (1 << 24) + "\n", "x.tsv, line 2: longer than 16,777,216 bytes"),
        ("x.parquet", "PAR1", "x.parquet: could not be read as parquet"),
    ],
)
def test_tables_that_are_none(name, content, said, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        list(stream_rows(tmp_path / name, ["text"]))
