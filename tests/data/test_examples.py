import pytest

from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.data.examples import discover_labels, read_examples
from lora_pl.data.tasks import CUSTOM_TASK, GLUE_TASKS
from lora_pl.errors import UserError
from tests.data.tables import write_table

ROWS = [("fine, really", "good"), ("NA", "bad"), ('"bad" one, or "', "bad"), ("", "good")]


def write(path, rows, header=("review", "stars")):
    return write_table(path, header, rows)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same(ending, tmp_path):
    path = write(tmp_path / f"mine{ending}", ROWS)
    assert discover_labels(path, "stars") == ("bad", "good")
    examples = read_examples(path, CUSTOM_TASK.customized(("bad", "good")), ["review"], "stars")
    assert examples.texts == ([text for text, _ in ROWS],)
    assert examples.labels == [1, 0, 0, 1]
    assert examples.blank == 1


def test_numeric_classes_are_in_numeric_order(tmp_path):
    path = write(tmp_path / "mine.csv", [("a", 10), ("b", 9), ("c", 1)])
    assert discover_labels(path, "stars") == ("1", "9", "10")
    assert read_examples(path, CUSTOM_TASK.customized(("1", "9", "10")), ["review"], "stars").labels == [2, 1, 0]


def test_a_number_is_no_id_where_the_names_are_numbers(tmp_path):
    path = write(tmp_path / "mine.csv", [("a", 0)])
    with pytest.raises(UserError, match="^data.label: "):
        read_examples(path, CUSTOM_TASK.customized(("1", "2", "3")), ["review"], "stars")


def test_a_pair_task_asks_for_its_second_column():
    with pytest.raises(UserError, match="^data.text_pair_column: "):
        SentenceDataModule(task="rte", train_file="x.csv", text_column="premise")
    assert SentenceDataModule(task="rte", train_file="x.csv").text_columns == ("sentence1", "sentence2")
    assert SentenceDataModule(task="stsb", train_file="x.csv", text_column="text").text_columns == ("text",)


def test_scores_and_pairs(tmp_path):
    path = write(tmp_path / "mine.csv", [("a", "b", 1.5), ("c", "d", 2)], ("one", "two", "stars"))
    examples = read_examples(path, GLUE_TASKS["stsb"], ["one", "two"], "stars")
    assert examples.texts == (["a", "c"], ["b", "d"])
    assert examples.labels == [1.5, 2.0]


BAD = [
    ("mine.csv", b"review,stars\n", "empty", "mine"),
    ("mine.csv", b"review,stars\na,good\nb,ugly\n", "label", "line 3"),
    ("mine.csv", b"review,stars\na,good\nb,\n", "label", "line 3"),
    ("mine.jsonl", b'{"review": "a", "stars": null}\n', "label", "line 1"),
]


@pytest.mark.parametrize(("name", "content", "key", "said"), BAD)
def test_bad_files_are_told(name, content, key, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^data.{key}: .*{said}"):
        read_examples(path, CUSTOM_TASK.customized(("bad", "good")), ["review"], "stars")


def test_labels_are_as_they_are_written(tmp_path):
    path = write(tmp_path / "mine.csv", [("a", "01"), ("b", "1"), ("c", "2.0"), ("d", "1e5"), ("e", "FALSE")])
    labels = discover_labels(path, "stars")
    assert labels == ("01", "1", "1e5", "2", "FALSE")
    task = CUSTOM_TASK.customized(labels)
    assert read_examples(path, task, ["review"], "stars").labels == [0, 1, 3, 2, 4]


@pytest.mark.parametrize("labels", [("x", "x"), (1.5, 2.0), ("x", "")])
def test_labels_that_are_no_classes(labels, tmp_path):
    with pytest.raises(UserError, match="^data.label: "):
        discover_labels(write(tmp_path / "mine.csv", list(zip("ab", labels, strict=True))), "stars")


def test_a_missing_file_or_half_a_pair(tmp_path):
    with pytest.raises(UserError, match="^data.missing: "):
        discover_labels(tmp_path / "none.csv", "stars")
    half = SentenceDataModule(
        train_file=str(write(tmp_path / "mine.csv", ROWS)), text_column="review", label_column="stars"
    )
    with pytest.raises(UserError, match="^data.validation_file: "):
        half.prepare_data()


def test_own_files_with_a_glue_task_take_its_labels(tmp_path, tiny_encoder):
    path = str(write(tmp_path / "mine.csv", [("fine", "positive"), ("dull", 0)]))
    data = SentenceDataModule(
        task="sst2", train_file=path, validation_file=path, text_column="review", label_column="stars",
        encoder=tiny_encoder(),
    )  # fmt: skip
    assert data.label_names == ["negative", "positive"]
    data.setup("fit")
    (batch,) = data.val_dataloader()[0]
    assert sorted(batch.labels.tolist()) == [0, 1]
