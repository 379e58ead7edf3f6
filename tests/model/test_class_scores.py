import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
    multilabel_exact_match,
    multilabel_f1_score,
    multilabel_precision,
    multilabel_recall,
)

from lora_pl.data.tasks import CUSTOM_TASK, get_task
from lora_pl.model.class_scores import Confusion, ConfusionScores, LabelCounts, LabelScores
from lora_pl.model.metrics import SplitMetrics, StageMetrics

CUSTOM = CUSTOM_TASK.customized(["a", "b", "c", "d"])


def confusion(labels, decisions, classes=4) -> torch.Tensor:
    metric = Confusion(classes)
    metric.update(torch.tensor(decisions), torch.tensor(labels))
    return metric.compute()


def test_the_scores_of_an_example_by_hand():
    """a is taken for b once, c for a once; d never occurs, so that it is in no mean."""
    scores = ConfusionScores(confusion([0, 0, 0, 1, 2], [0, 0, 1, 1, 0]))
    assert scores.confusion.tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert (scores.support.tolist(), scores.accuracy) == ([3, 1, 1, 0], pytest.approx(3 / 5))
    assert scores.by_class.precision.tolist() == pytest.approx([2 / 3, 1 / 2, 0, 0])
    assert scores.by_class.recall.tolist() == pytest.approx([2 / 3, 1, 0, 0])
    assert scores.by_class.f1.tolist() == pytest.approx([2 / 3, 2 / 3, 0, 0])
    assert scores.macro == pytest.approx(((2 / 3 + 1 / 2) / 3, (2 / 3 + 1) / 3, (2 / 3 + 2 / 3) / 3))


def test_a_class_that_is_only_predicted_counts():
    assert ConfusionScores(confusion([0, 0], [0, 3])).macro.f1 == pytest.approx((2 / 3 + 0) / 2)


def test_the_scores_are_torchmetrics():
    classes = 7
    labels, decisions = torch.randint(classes, (200,)), torch.randint(classes, (200,))
    scores = ConfusionScores(confusion(labels.tolist(), decisions.tolist(), classes))
    theirs = (multiclass_precision, multiclass_recall, multiclass_f1_score)
    for own, macro, function in zip(scores.by_class, scores.macro, theirs, strict=True):
        torch.testing.assert_close(own.float(), function(decisions, labels, classes, average="none"))
        assert macro == pytest.approx(float(function(decisions, labels, classes, average="macro")))


def test_counts_are_exact_over_batches_and_processes():
    one, other = Confusion(3), Confusion(3)
    for metric in (one, other):
        metric.counts += 1 << 24  # where fp32 has no odd numbers any more
        metric.update(torch.tensor([0, 1]), torch.tensor([0, 2]))
        metric.update(torch.tensor([0]), torch.tensor([0]))
    one.merge_state(other)
    assert one.compute()[0, 0] == (1 << 25) + 4
    assert one.compute()[2, 1] == (1 << 25) + 2


def test_evaluation_counts_classes_and_training_does_not():
    stages = StageMetrics(CUSTOM)
    labels = torch.tensor([0.0, 1.0, 1.0, 2.0])
    for stage in ("train", "val", "test"):
        stages.of(stage).update(torch.eye(4), labels, torch.tensor(0.5))
    assert [*stages.compute("train")] == ["train/loss", "train/accuracy"]
    assert [*stages.compute("val")] == ["val/loss", "val/accuracy", "val/macro_f1"]
    assert float(stages.compute("test")["test/macro_f1"]) == pytest.approx((1 + 2 / 3 + 0 + 0) / 4)
    stages.reset("val")
    assert not stages.evaluated("val")


def test_of_a_regression_there_are_none():
    assert SplitMetrics(get_task("stsb")).class_scores() is None


def label_scores(labels, decisions) -> LabelScores:
    metric = LabelCounts(len(labels[0]))
    metric.update(torch.tensor(decisions), torch.tensor(labels))
    return metric.scores()


def test_the_scores_of_labels_by_hand():
    """a is found once of twice, b is right, c is decided once and never there, d is neither."""
    found = label_scores([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    assert (found.support.tolist(), found.accuracy) == ([2, 1, 0, 0], pytest.approx(2 / 3))
    assert found.by_class.precision.tolist() == pytest.approx([1, 1, 0, 0])
    assert found.by_class.recall.tolist() == pytest.approx([1 / 2, 1, 0, 0])
    assert found.by_class.f1.tolist() == pytest.approx([2 / 3, 1, 0, 0])
    assert found.macro.f1 == pytest.approx((2 / 3 + 1) / 4)
    assert found.micro == pytest.approx((2 / 3, 2 / 3, 2 / 3))


def test_the_scores_of_labels_are_torchmetrics():
    labels, decisions = torch.randint(2, (200, 5)), torch.randint(2, (200, 5))
    found = label_scores(labels.tolist(), decisions.tolist())
    theirs = (multilabel_precision, multilabel_recall, multilabel_f1_score)
    for mean in ("micro", "macro"):
        expected = [float(function(decisions, labels, 5, average=mean)) for function in theirs]
        assert found.means[mean] == pytest.approx(expected)
    assert found.accuracy == pytest.approx(float(multilabel_exact_match(decisions, labels, 5)))


def test_counts_of_labels_are_exact_over_batches_and_processes():
    one, other = LabelCounts(2), LabelCounts(2)
    for metric in (one, other):
        metric.labels += 1 << 24  # where fp32 has no odd numbers any more
        metric.update(torch.tensor([[1, 0]]), torch.tensor([[1, 1]]))
        metric.update(torch.tensor([[0, 1]]), torch.tensor([[0, 1]]))
    one.merge_state(other)
    labels, examples = one.compute()
    assert (labels - (1 << 25)).tolist() == [[2, 2], [2, 2], [2, 4]]
    assert examples.tolist() == [2, 4]


def test_evaluation_counts_labels_and_training_does_not():
    stages = StageMetrics(get_task("multilabel").customized(["a", "b"]))
    for stage in ("train", "val"):
        stages.of(stage).update(torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor(0.5))
    assert [*stages.compute("train")] == ["train/loss"]
    assert {name: float(value) for name, value in stages.compute("val").items()} == {
        "val/loss": 0.5, "val/micro_f1": 1, "val/macro_f1": 0.5, "val/exact_match": 1,
    }  # fmt: skip
