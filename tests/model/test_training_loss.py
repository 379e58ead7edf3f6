import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lora_pl import LoRAClassifier, SentenceDataModule
from lora_pl.data.tasks import CUSTOM_TASK, get_task
from lora_pl.errors import UserError
from lora_pl.model.training_loss import TrainingLoss
from tests.model.test_classifier import batch_of, trainer

CUSTOM = CUSTOM_TASK.customized(["a", "b", "c"])
LABELS = torch.tensor([0.0, 2.0, 2.0, 1.0])


def loss_of(class_weights=None, label_smoothing=0.0, task=CUSTOM) -> TrainingLoss:
    return TrainingLoss(task, {"class_weights": class_weights, "label_smoothing": label_smoothing})


def test_without_settings_it_is_the_tasks():
    logits = torch.randn(4, 3)
    assert torch.equal(loss_of()(logits, LABELS), CUSTOM.loss(logits, LABELS))
    scores = torch.randn(4, 1)
    assert torch.equal(loss_of(task=get_task("stsb"))(scores, LABELS), get_task("stsb").loss(scores, LABELS))


def test_the_formula():
    weights, e, logits = torch.tensor([0.5, 1, 4]), 0.2, torch.randn(4, 3)
    q = (1 - e) * F.one_hot(LABELS.long(), 3) + e / 3
    expected = -(weights * q * logits.log_softmax(-1)).sum() / weights[LABELS.long()].sum()
    torch.testing.assert_close(loss_of(weights.tolist(), e)(logits, LABELS), expected)
    torch.testing.assert_close(loss_of([2.0, 2.0, 2.0])(logits, LABELS), CUSTOM.loss(logits, LABELS))


def test_the_formula_of_several_labels():
    task, labels = get_task("multilabel").customized(["a", "b", "c"]), torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    weights, e, logits = torch.tensor([0.5, 1, 4]), 0.2, torch.randn(2, 3)
    q = (1 - e) * labels + e / 2
    expected = -(weights * q * F.logsigmoid(logits) + (1 - q) * F.logsigmoid(-logits)).mean()
    torch.testing.assert_close(loss_of(weights.tolist(), e, task)(logits, labels), expected)
    loss = loss_of("balanced", task=task)
    loss.take_weights(labelled([1, 0, 1], [0, 1, 1], [1, 0, 0]))
    assert loss.weights.tolist() == [1 / 2, 2, 1 / 2]
    for rows, named in (
        ([1, 0, 1], "no training sentence is of 'b'"),
        ([1, 1, 1], "every training sentence is of 'a'"),
    ):
        with pytest.raises(UserError, match=named):
            loss_of("balanced", task=task).take_weights(labelled(rows, rows))


def labelled(*labels: object) -> SentenceDataModule:
    data = SentenceDataModule(source="sample")
    data._tokens["train"] = SimpleNamespace(labels=np.array(labels, np.float32))
    return data


def test_balanced_weights_are_scikit_learns(capsys):
    loss = loss_of("balanced")
    loss.take_weights(labelled(0, 0, 0, 1, 2, 2))
    assert loss.weights.tolist() == pytest.approx([6 / (3 * 3), 6 / (3 * 1), 6 / (3 * 2)])
    assert "class weights: a: 0.6667, b: 2, c: 1" in capsys.readouterr().err


@pytest.mark.parametrize("data", [labelled(0, 0, 2), None])
def test_balanced_needs_an_example_of_each_class(data):
    with pytest.raises(UserError, match=r"'b'|SentenceDataModule") as error:
        loss_of("balanced").take_weights(data)
    assert error.value.key == "model.class_weights"


@pytest.mark.parametrize(
    ("name", "value"),
    [("class_weights", [1.0, 2.0]), ("class_weights", [1.0, 2.0, -1.0]), ("class_weights", [0.0, 0.0, 0.0]),
     ("class_weights", [1.0, 2.0, math.nan]), ("class_weights", [1.0, 2.0, 1e300]), ("label_smoothing", 1.0),
     ("label_smoothing", -0.1), ("label_smoothing", math.nan)],
)  # fmt: skip
def test_settings_out_of_range(name, value):
    with pytest.raises(UserError, match=f"^model.{name}: "):
        loss_of(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("class_weights", "balanced"), ("label_smoothing", 0.1)])
def test_a_regression_has_no_classes(name, value):
    with pytest.raises(UserError, match=f"^model.{name}: .*no classes"):
        loss_of(task=get_task("stsb"), **{name: value})


def test_training_uses_it_and_validation_the_tasks_own(tiny_encoder, tmp_path, monkeypatch):
    model = LoRAClassifier(encoder=tiny_encoder(), class_weights=[1, 9], label_smoothing=0.1).eval()
    batch = replace(batch_of(model), labels=torch.tensor([0.0, 1.0, 0.0, 0.0]))
    logits = model(batch)
    model.trainer = trainer(tmp_path)
    monkeypatch.setattr(model, "log", lambda *given, **options: None)
    torch.testing.assert_close(model.training_step(batch, 0), model.loss(logits, batch.labels))
    model.validation_step(batch, 0)
    own = F.cross_entropy(logits, batch.labels.long())
    torch.testing.assert_close(model.metrics.compute("val")["val/loss"], own, check_dtype=False)


def test_nan_weights_are_refused_in_one_line(tiny_encoder):
    with pytest.raises(UserError, match="finite number, got nan"):
        LoRAClassifier(encoder=tiny_encoder(), class_weights=[1.0, math.nan])
