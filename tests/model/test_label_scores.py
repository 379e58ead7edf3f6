import pytest
import torch
from torchmetrics.functional.classification import (
    multilabel_exact_match,
    multilabel_f1_score,
    multilabel_precision,
    multilabel_recall,
)

from lora_pl.data.tasks import get_task
from lora_pl.model.label_scores import LabelCounts, LabelScores
from lora_pl.model.metrics import StageMetrics


def scores(labels, decisions) -> LabelScores:
    metric = LabelCounts(len(labels[0]))
    metric.update(torch.tensor(decisions), torch.tensor(labels))
    return metric.scores()


def test_the_scores_of_an_example_by_hand():
    """a is found once of twice, b is right, c is decided once and never there, d is neither."""
    found = scores([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    assert (found.support.tolist(), found.total, found.accuracy) == ([2, 1, 0, 0], 3, pytest.approx(2 / 3))
    assert found.by_class.precision.tolist() == pytest.approx([1, 1, 0, 0])
    assert found.by_class.recall.tolist() == pytest.approx([1 / 2, 1, 0, 0])
    assert found.by_class.f1.tolist() == pytest.approx([2 / 3, 1, 0, 0])
    assert found.macro.f1 == pytest.approx((2 / 3 + 1) / 4)
    assert found.micro == pytest.approx((2 / 3, 2 / 3, 2 / 3))


def test_the_scores_are_torchmetrics():
    labels, decisions = torch.randint(2, (200, 5)), torch.randint(2, (200, 5))
    found = scores(labels.tolist(), decisions.tolist())
    theirs = (multilabel_precision, multilabel_recall, multilabel_f1_score)
    for mean in ("micro", "macro"):
        expected = [float(function(decisions, labels, 5, average=mean)) for function in theirs]
        assert found.means[mean] == pytest.approx(expected)
    assert found.accuracy == pytest.approx(float(multilabel_exact_match(decisions, labels, 5)))


def test_counts_are_exact_over_batches_and_processes():
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
