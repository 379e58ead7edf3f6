"""Long files: in constant memory, in parts that outlive a stop."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lora_pl.cli.main import main
from lora_pl.data import texts
from lora_pl.data.texts import TextStream
from lora_pl.errors import UserError
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.storage.parts import Parts

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
        patch.setattr(Parts, "join", lambda self: 1 / 0)
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
        shards = TextStream("x.txt", ["text"]).shards(lambda shard, rank=rank: shard % world == rank)
        seen += [text for _, chunks in shards for chunk in chunks for text in chunk]
    assert sorted(seen) == sorted(TEXTS)
