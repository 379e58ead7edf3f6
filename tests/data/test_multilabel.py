"""Several labels per text, from lists and from columns of 0 and 1."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.data.drawing import RARE, stratified_order
from lora_pl.errors import UserError
from tests.data.tables import write_table

LABELS = [["b", "a"], [], ["c"], ["a", "a"]]
ROWS = [(1, 1, 0), (0, 0, 0), (0, 0, 1), (1, 0, 0)]


def write(ending: str, labels=LABELS) -> str:
    """A file of a text and a list in each row."""
    return str(write_table(Path(f"mine{ending}"), ("text", "label"), [("good", names) for names in labels]))


def data_of(file: str, **given) -> SentenceDataModule:
    return SentenceDataModule(**{"task": "multilabel", "train_file": file, **given})


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same(ending):
    data = data_of(write(ending))
    assert data.label_names == ["a", "b", "c"]
    assert data.read("train").labels == ROWS


@pytest.mark.parametrize("type", [pa.large_list(pa.string()), pa.list_(pa.dictionary(pa.int8(), pa.string()))])
def test_lists_of_other_programs(type):
    pq.write_table(pa.table({"text": ["good"] * 4, "label": pa.array(LABELS, type)}), "x.parquet")
    assert data_of("x.parquet", label_names=["a", "b", "c"]).read("train").labels == ROWS


def test_columns_of_0_and_1():
    Path("x.csv").write_text("text,b, a\ngood,1,0\ngood,True,1.0\n")
    data = data_of("x.csv", label_columns=[" a", "b"])
    assert data.label_names == [" a", "b"]
    assert data.read("train").labels == [(0, 1), (1, 1)]
    renamed = data_of("x.csv", label_columns=[" a", "b"], label_names=["toxic", "mild"])
    assert (renamed.label_names, renamed.read("train").labels) == (["toxic", "mild"], [(0, 1), (1, 1)])


@pytest.mark.parametrize(
    ("given", "key", "said"),
    [({"task": "custom"}, "data.row", "--data.task multilabel"),
     ({"task": "custom", "label_columns": ["a"]}, "data.label_columns", "--data.task multilabel"),
     ({"label_columns": []}, "data.label_columns", "at least one"),
     ({"label_columns": ["a", "a"]}, "data.label_columns", "all different"),
     ({"label_columns": ["a"], "label_names": ["a", "b"]}, "data.label_columns", "each of a, b"),
     ({"label_columns": ["text"]}, "data.label", "line 1, text: expected 0 or 1, got 'good'"),
     ({"label_names": ["a", "b"]}, "data.label", "line 3: label 'c'"),
     ({"train_file": None, "source": "sample"}, "data.source", "the task multilabel")],
)  # fmt: skip
def test_mistakes_are_named(given, key, said):
    with pytest.raises(UserError) as error:
        data_of(write(".jsonl"), **given).read("train")
    assert error.value.key == key
    assert said in str(error.value)


@pytest.mark.parametrize("labels", [[[""]], [["a"], [None]], [[["a"]]], [["0.5"]], [[], []], [None, ["a"]]])
def test_lists_without_classes(labels):
    with pytest.raises(UserError, match="^data.label: "):
        assert data_of(write(".jsonl", labels)).label_names


def test_a_list_of_class_labels_on_the_hub(tmp_path, monkeypatch):
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    features = {"text": Value("string"), "label": Sequence(ClassLabel(names=["x", "1"])), "x": ClassLabel(names="ab")}
    rows = {"text": ["good", "bad"], "label": [[1, 0], []], "x": [1, 0]}
    Dataset.from_dict(rows, features=Features(features)).to_parquet(tmp_path / "films" / "train.parquet")
    own = {"task": "multilabel", "source": f"hub:{tmp_path / 'films'}"}
    lists = SentenceDataModule(**own)
    assert (lists.label_names, lists.read("train").labels) == (["x", "1"], [(1, 1), (0, 0)])
    assert SentenceDataModule(**own, label_columns=["x"]).read("train").labels == [(1,), (0,)]


def test_the_cache_tells_a_column_from_class_ids(tiny_encoder):
    Path("x.csv").write_text("text,label\ngood,0\nbad,1\n")
    own = {"encoder": tiny_encoder(), "validation_file": "x.csv", "cache_dir": "cache"}
    for given in ({"task": "custom"}, {"label_columns": ["label"]}, {"task": "custom"}):
        data = data_of("x.csv", **{**own, **given})
        data.setup("fit")
        assert data.labels("train").tolist() == ([0, 1] if "task" in given else [[0], [1]])


def test_draws_keep_the_shares_of_sets_that_are_not_rare():
    sets = np.repeat([[1, 0, 0], [1, 1, 0], [0, 0, 0]], [60, 30, 20], axis=0)
    rare = [[0, 1, 0], [0, 0, 1], *[[0, 1, 1]] * (RARE - 2)]
    labels = np.concatenate([sets, rare]).astype(np.float32)
    first = labels[stratified_order(labels, 3)[:24]]
    counts = [int((first == names).all(1).sum()) for names in ([1, 0, 0], [1, 1, 0], [0, 0, 0])]
    assert np.abs(np.array([*counts, 24 - sum(counts)]) - np.array([60, 30, 20, RARE]) * 24 / len(labels)).max() < 2


def test_held_out_sentences_need_not_have_every_set(tiny_encoder, capsys):
    file = write(".jsonl", [[name] for name in "abcdefghij"])
    for number, record in enumerate(lines := [json.loads(line) for line in Path(file).read_text().splitlines()]):
        record["text"] = f"good {number}"
    Path(file).write_text("\n".join(map(json.dumps, lines)))
    data = data_of(file, encoder=tiny_encoder(), validation_share=0.2, train_sentences=4, train_draw="stratified")
    data.setup("fit")
    assert data.labels("validation").shape == (2, 10)
    assert data.largest_share("validation") == 1 / 2
    assert data.labels("train").shape == (4, 10)
    assert next(iter(data.train_dataloader())).labels.shape == (4, 10)
    assert "no sentence of" in capsys.readouterr().err
