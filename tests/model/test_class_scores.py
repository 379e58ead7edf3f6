import pytest
import torch
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

from lora_pl.data.tasks import CUSTOM_TASK, get_task
from lora_pl.model.class_scores import Confusion, ConfusionScores
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
    assert (scores.support.tolist(), scores.total, scores.accuracy) == ([3, 1, 1, 0], 5, pytest.approx(3 / 5))
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
