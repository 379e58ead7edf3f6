import csv
import json
import pickle
import shlex
import subprocess

import numpy as np
import pytest
import torch

from lora_pl.data.classes import label_text
from lora_pl.data.examples import read_examples
from lora_pl.data.sources import read_glue_file
from lora_pl.data.tasks import CUSTOM_TASK, GLUE_TASKS, MultiLabel, Regression, get_task
from lora_pl.errors import UserError
from lora_pl.model.metrics import SplitMetrics

CUSTOM = CUSTOM_TASK.customized(["bad", "fair", "good"])
MULTILABEL = get_task("multilabel").customized(["bad", "fair", "good"])
TASKS = {**GLUE_TASKS, "custom": CUSTOM, "custom pairs": CUSTOM_TASK.customized(["no", "yes"], pairs=True)}
TASKS |= {"multilabel": MULTILABEL, "multilabel of one": get_task("multilabel").customized(["bad"])}


def labels_of(task):
    """Some labels, every class among them, as a file has them and as numbers."""
    if isinstance(task, Regression):
        return ["0.5", "3", "1.25", "4.75"], [0.5, 3.0, 1.25, 4.75]
    if isinstance(task, MultiLabel):
        sets = [task.labels, task.labels[:1], ()]
        return [json.dumps(names) for names in sets], [tuple(float(n in s) for n in task.labels) for s in sets]
    return [*task.labels, *task.labels[:1]], [*range(len(task.labels)), 0]


def perfect_logits(task, labels):
    values = torch.tensor(labels, dtype=torch.float32)
    if isinstance(task, Regression):
        return values[:, None]
    if isinstance(task, MultiLabel):
        return 40 * values - 20
    return 20 * torch.nn.functional.one_hot(values.long(), task.outputs).float()


def with_ids(task, cell):
    """A cell with ids for names."""
    if isinstance(task, MultiLabel):
        return json.dumps([task.labels.index(name) for name in json.loads(cell)])
    return str(task.labels.index(cell)) if task.labels else cell


@pytest.fixture(params=TASKS)
def task(request):
    return TASKS[request.param]


def test_labels_parse_by_name_and_by_id(task):
    cells, labels = labels_of(task)
    assert [task.parse(cell, "here") for cell in cells] == labels
    assert [task.parse(with_ids(task, cell), "here") for cell in cells] == labels
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
        if isinstance(task, MultiLabel):
            assert list(row) == ["labels", "probabilities"]
            assert row["labels"] == [name for name, there in zip(task.labels, label, strict=True) if there]
            assert row["probabilities"] == pytest.approx(dict(zip(task.labels, label, strict=True)), abs=1e-8)
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
        assert not len(task.counts(labels))
    else:
        without = "; 1 without a label" if isinstance(task, MultiLabel) else ""
        assert said == ", ".join(f"{name}: {2 if id == 0 else 1}" for id, name in enumerate(task.labels)) + without
        assert task.counts(labels).tolist() == [2, *[1] * (len(task.labels) - 1)]


def test_a_class_without_sentences_and_many_classes_are_counted():
    assert CUSTOM.distribution(np.array([0, 2, 2], np.float32)) == "bad: 1, fair: 0, good: 2"
    marked = CUSTOM_TASK.customized(["bad", "so, so"]).distribution(np.array([0, 1], np.float32))
    assert marked == 'bad: 1, "so, so": 1'
    many = CUSTOM_TASK.customized([f"c{id}" for id in range(50)]).distribution(np.arange(50, dtype=np.float32))
    assert many.startswith("c0: 1, c1: 1, ")
    assert many.endswith(", ... (50 classes)")


@pytest.mark.parametrize(
    "cell", ['["bad", "worse"]', "bad", "bad, good", '{"bad": 1}', '[["bad"]]', "[null]", "[true]", "[" * 5000]
)
def test_a_cell_that_is_no_list_of_the_labels(cell):
    with pytest.raises(UserError, match=r"^data.label: x.csv, line 2: ") as error:
        MULTILABEL.parse(cell, "x.csv, line 2")
    assert len(str(error.value)) < 200


def test_a_flag_is_no_list_of_labels():
    with pytest.raises(UserError, match="--data.label_columns$"):
        MULTILABEL.parse("1", "x.csv, line 2")


def test_labels_in_a_list_are_a_set():
    assert MULTILABEL.parse('["good", " good", "1.0", 2]', "here") == (0, 1, 1)


def test_the_surest_wrong_decision_about_a_label_ranks_an_error():
    logits = torch.tensor([[3.0, -1.0, 2.0]])
    (answer,) = MULTILABEL.predictions(logits)
    found = MULTILABEL.error((1.0, 1.0, 0.0), answer)
    assert (found["label"], found["prediction"]) == (["bad", "fair"], ["bad", "good"])
    assert found["probability"] == pytest.approx(torch.tensor(2.0).sigmoid().item())


def test_the_example_command_writes_a_line_that_predict_reads(task):
    written, _, command = task.example_command("a b/best.ckpt").partition(" | ")
    line = subprocess.run(["sh", "-c", written], capture_output=True, text=True, check=True).stdout
    assert line.endswith("\n")
    assert len(line.split("\t")) == len(task.columns)
    assert shlex.split(command) == ["lora_pl", "predict", "--ckpt_path", "a b/best.ckpt"]


def test_a_task_goes_to_another_process(task):
    assert pickle.loads(pickle.dumps(task)) == task


def test_all_nine_tasks_have_a_row():
    assert {"cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"} <= GLUE_TASKS.keys()
    assert len(GLUE_TASKS["mnli"].validation) == 2
    assert all(len(task.columns) == len(task.file_columns) for task in GLUE_TASKS.values())


@pytest.mark.parametrize(
    ("name", "labels"),
    [("sst2", ["one"]), ("sst2", ["a", "a"]), ("stsb", ["a"]), ("custom", None), ("custom", ["one"]),
     ("custom", ["a", "b", "a"]), ("multilabel", []), ("multilabel", ["a", "a"])],
)  # fmt: skip
def test_labels_that_do_not_fit_the_task(name, labels):
    with pytest.raises(UserError, match="^label_names: "):
        get_task(name).customized(labels)


def test_classes_that_are_numbers_are_no_ids():
    task = CUSTOM_TASK.customized(["1.0", "0.0"])
    read = [task.parse(label_text(cell), "x.csv, line 2") for cell in ("1.0", "1", "0.0")]
    assert read == [0, 0, 1]
    with pytest.raises(UserError, match="label '0' is outside the task's classes; expected 1, 2, 3$"):
        CUSTOM_TASK.customized(["1", "2", "3"]).parse("0", "x.csv, line 2")


@pytest.mark.parametrize(
    ("name", "near"), [("SST-2", "sst2"), ("mnl", "mnli"), ("qnil", "qnli"), ("Multi-label", "multilabel")]
)
def test_an_unknown_task_names_the_nearest(name, near):
    with pytest.raises(UserError, match=f"^task: .*{near}"):
        get_task(name)
