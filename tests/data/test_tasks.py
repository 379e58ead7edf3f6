import csv
import pickle
import subprocess

import numpy as np
import pytest
import torch

from lora_pl.data.examples import read_examples
from lora_pl.data.sources import read_glue_file
from lora_pl.data.tasks import CUSTOM_TASK, GLUE_TASKS, Regression, get_task
from lora_pl.errors import UserError
from lora_pl.model.metrics import SplitMetrics

CUSTOM = CUSTOM_TASK.customized(["bad", "fair", "good"])
TASKS = {**GLUE_TASKS, "custom": CUSTOM, "custom pairs": CUSTOM_TASK.customized(["no", "yes"], pairs=True)}


def labels_of(task):
    """Some labels, every class among them, as a file has them and as numbers."""
    if isinstance(task, Regression):
        return ["0.5", "3", "1.25", "4.75"], [0.5, 3.0, 1.25, 4.75]
    return [*task.labels, *task.labels[:1]], [*range(len(task.labels)), 0]


def perfect_logits(task, labels):
    values = torch.tensor(labels, dtype=torch.float32)
    if isinstance(task, Regression):
        return values[:, None]
    return 20 * torch.nn.functional.one_hot(values.long(), task.outputs).float()


@pytest.fixture(params=TASKS)
def task(request):
    return TASKS[request.param]


def test_labels_parse_by_name_and_by_id(task):
    cells, labels = labels_of(task)
    assert [task.parse(cell, "here") for cell in cells] == labels
    assert [task.parse(f"{label:g}", "here") for label in labels] == labels
    for wrong in ("-1", "9" * 400, "NaN", "", "nonsense")[isinstance(task, Regression) :]:
        with pytest.raises(UserError) as error:
            task.parse(wrong, "mine.csv, row 3")
        assert error.value.key == "data.label"
        assert "mine.csv, row 3" in str(error.value)


def test_loss_is_finite_and_falls_along_its_gradient(task):
    labels = torch.tensor(labels_of(task)[1], dtype=torch.float32)
    logits = torch.randn(len(labels), task.outputs, requires_grad=True)
    loss = task.loss(logits, labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert task.loss(logits - 0.01 * logits.grad, labels) < loss


def test_perfect_predictions_have_perfect_metrics(task):
    labels = torch.tensor(labels_of(task)[1], dtype=torch.float32)
    logits = perfect_logits(task, labels.tolist())
    metrics = SplitMetrics(task)
    metrics.update(logits, labels, task.loss(logits, labels))
    found = {name: value.item() for name, value in metrics.compute().items()}
    assert found.pop("loss") == pytest.approx(0, abs=1e-6)
    assert found == {name: pytest.approx(1) for name in task.metrics}


def test_predictions_have_the_promised_keys(task):
    _, labels = labels_of(task)
    for row, label in zip(task.predictions(perfect_logits(task, labels)), labels, strict=True):
        if isinstance(task, Regression):
            assert row == {"score": label}
            continue
        assert list(row) == ["label", "score", "probabilities"]
        assert list(row["probabilities"]) == list(task.labels)
        assert row["label"] == task.labels[int(label)]
        assert row["score"] == row["probabilities"][row["label"]] == max(row["probabilities"].values())
        assert sum(row["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_a_glue_downloads_layout_is_read(name, tmp_path):
    task = GLUE_TASKS[name]
    cells, labels = labels_of(task)
    header = task.header or (*task.file_columns, task.label_column)
    rows = [
        [cell if column == task.label_column else f"{column} {number}" for column in header]
        for number, cell in enumerate(cells)
    ]
    lines = ["\t".join(row) for row in ([] if task.header else [header]) + rows]
    (tmp_path / "x.tsv").write_text("\n".join(lines) + "\n")
    examples = read_glue_file(tmp_path / "x.tsv", task)
    assert examples.labels == labels
    assert examples.texts == tuple([f"{column} {n}" for n in range(len(rows))] for column in task.file_columns)


def test_own_files_are_read(task, tmp_path):
    cells, labels = labels_of(task)
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [[*task.columns, "label"], *([*(f"{c} {n}" for c in task.columns), cell] for n, cell in enumerate(cells))]
        )
    examples = read_examples(tmp_path / "x.csv", task, task.columns, "label")
    assert examples.labels == labels
    assert examples.texts == tuple([f"{column} {n}" for n in range(len(cells))] for column in task.columns)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_distribution_counts_every_label(task):
    labels = np.array(labels_of(task)[1], np.float32)
    said = task.distribution(labels)
    if isinstance(task, Regression):
        assert said == "scores 0.5 to 4.75, mean 2.38"
    else:
        assert said == ", ".join(f"{name} {2 if id == 0 else 1}" for id, name in enumerate(task.labels))


def test_a_class_without_sentences_and_many_classes_are_counted():
    assert CUSTOM.distribution(np.array([0, 2, 2], np.float32)) == "bad 1, fair 0, good 2"
    many = CUSTOM_TASK.customized([f"c{id}" for id in range(50)]).distribution(np.arange(50, dtype=np.float32))
    assert many.startswith("c0 1, c1 1, ")
    assert many.endswith(", ... (50 classes)")


def test_the_example_command_writes_a_line_that_predict_reads(task):
    written, _, command = task.example_command("a/best.ckpt").partition(" | ")
    line = subprocess.run(["sh", "-c", written], capture_output=True, text=True, check=True).stdout
    assert line.endswith("\n")
    assert len(line.split("\t")) == len(task.columns)
    assert command == "lora_pl predict --ckpt_path a/best.ckpt"


def test_a_task_goes_to_another_process(task):
    assert pickle.loads(pickle.dumps(task)) == task


def test_all_nine_tasks_have_a_row():
    assert sorted(GLUE_TASKS) == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]
    assert len(GLUE_TASKS["mnli"].validation) == 2
    assert all(len(task.columns) == len(task.file_columns) for task in GLUE_TASKS.values())


@pytest.mark.parametrize(
    ("name", "labels"),
    [("sst2", ["one"]), ("sst2", ["a", "a"]), ("stsb", ["a"]), ("custom", None), ("custom", ["one"]),
     ("custom", ["a", "b", "a"])],
)  # fmt: skip
def test_labels_that_do_not_fit_the_task(name, labels):
    with pytest.raises(UserError) as error:
        get_task(name).customized(labels)
    assert error.value.key == "label_names"


def test_classes_that_are_numbers_are_no_ids():
    with pytest.raises(UserError, match="label '0' is outside the task's classes; expected 1, 2, 3$"):
        CUSTOM_TASK.customized(["1", "2", "3"]).parse("0", "x.csv, line 2")


@pytest.mark.parametrize(("name", "near"), [("SST-2", "sst2"), ("mnl", "mnli"), ("qnil", "qnli")])
def test_an_unknown_task_names_the_nearest(name, near):
    with pytest.raises(UserError, match=near) as error:
        get_task(name)
    assert error.value.key == "task"
