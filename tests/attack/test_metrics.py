"""Metrics at their edges: as scikit-learn and SciPy define them, and never a number that no logits decide."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from lora_pl.data.tasks import get_task
from lora_pl.errors import UserError
from lora_pl.model.exact_metrics import Correlation, Matthews, Mean
from lora_pl.model.metrics import TOGETHER, SplitMetrics
from lora_pl.predictions.writers import json_lines

counts = pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.attack)])
scores = st.floats(-(2.0**90), 2.0**90, width=32) | st.sampled_from([0.0, 0.1, 1.0, 1e6, 1e6 + 0.0625])


def searched(count: int, *strategies):
    """The decorated function runs for that many examples."""
    return lambda check: settings(max_examples=count, deadline=None, database=None)(given(*strategies)(check))()


@counts
def test_correlations_are_scipys(count):
    @searched(count, st.lists(st.tuples(scores, scores), min_size=1, max_size=40), st.integers(1, 7))
    def check(pairs, size):
        first, second = np.asarray(pairs, np.float32).T
        for ranks, reference in ((False, pearsonr), (True, spearmanr)):
            metric = Correlation(ranks)
            for start in range(0, len(first), size):
                metric.update(*(torch.tensor(values[start : start + size]) for values in (first, second)))
            expected = math.nan
            if len(first) > 1:
                with warnings.catch_warnings(action="ignore"):
                    expected = reference(first.astype(np.float64), second.astype(np.float64))[0]
            assert float(metric.compute()) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_a_correlation_of_small_noise_on_a_large_number():
    draw = np.random.default_rng(0)
    first = (1e6 + draw.normal(size=3000)).astype(np.float32)
    second = (first + draw.normal(size=3000)).astype(np.float32)
    metric = Correlation()
    metric.update(torch.tensor(first), torch.tensor(second))
    assert float(metric.compute()) == pytest.approx(pearsonr(first.astype(float), second.astype(float))[0], abs=1e-7)


@counts
def test_matthews_is_the_formulas_and_0_for_constants(count):
    @searched(count, st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
    def check(pairs):
        labels, predictions = (torch.tensor(column) for column in zip(*pairs, strict=True))
        metric = Matthews(3)
        metric.update(predictions, labels)
        hot = [torch.nn.functional.one_hot(ids, 3).double() for ids in (labels, predictions)]
        centred = [values - values.mean(0) for values in hot]
        spread = math.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
        constant = len(set(labels.tolist())) == 1 or len(set(predictions.tolist())) == 1
        expected = 0.0 if constant else float((centred[0] * centred[1]).sum()) / spread
        assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)


def test_a_mean_of_many_is_summed_in_fp64():
    metric = Mean()
    one = torch.ones(1)
    metric.update(1e8 * one, one)
    for _ in range(1000):
        metric.update(one, one)
    assert float(metric.compute()) == pytest.approx((1e8 + 1000) / 1001, rel=1e-7)


def test_one_class_alone():
    metrics = SplitMetrics(get_task("mrpc"))
    metrics.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0]), torch.tensor(0.5))
    assert {name: float(value) for name, value in metrics.compute().items()} == {"loss": 0.5, "accuracy": 1, "f1": 0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_logits_that_are_no_numbers_decide_nothing(task, bad):
    task = get_task(task)
    logits = torch.zeros(3, task.outputs)
    logits[1, 0] = bad
    with pytest.raises(UserError) as error:
        task.predictions(logits)
    assert error.value.key == "predict.nonfinite"
    assert "text 2 " in str(error.value)
    metrics = SplitMetrics(task)
    labels = torch.tensor([0.0, 1.0, 1.0])
    metrics.update(logits, labels, task.loss(logits, labels))
    metrics.update(torch.zeros(3, task.outputs), labels, torch.tensor(0.5))
    assert metrics.broken == 1
    assert all(value.isnan() for value in metrics.compute().values())
    metrics.reset()
    assert metrics.broken == 0


@pytest.mark.parametrize("task", ["mrpc", "stsb"])
def test_many_batches_count_as_one(task):
    """They are counted some at a time, the rest when it is asked for."""
    task = get_task(task)
    logits, labels = torch.randn(2 * TOGETHER + 5, task.outputs), torch.arange(2.0 * TOGETHER + 5) % 2
    whole, parts = SplitMetrics(task), SplitMetrics(task)
    whole.update(logits, labels, task.loss(logits, labels))
    for one in range(len(labels)):
        own = logits[one : one + 1], labels[one : one + 1]
        parts.update(*own, task.loss(*own))
        assert parts.seen
        if one == TOGETHER + 2:  # as a checkpoint does
            parts.load_sums(parts.sums())
    for name, value in whole.compute().items():
        assert float(parts.compute()[name]) == pytest.approx(float(value), rel=1e-6), name


def test_json_has_no_nan():
    with pytest.raises(ValueError, match="JSON compliant"):
        json_lines([{"score": math.nan}])


def test_sums_survive_a_checkpoint_and_another_versions_are_left_out():
    one, two = (SplitMetrics(get_task("stsb")) for _ in range(2))
    for metrics in (one, two):
        metrics.update(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 3.0]), torch.tensor(0.5))
    again = SplitMetrics(get_task("stsb"))
    again.load_sums({**one.sums(), "pearson": (1, {"mean_x": torch.zeros(1)})})
    again.load_sums(one.sums())
    for metrics in (one, again):
        metrics.update(torch.tensor([[4.0]]), torch.tensor([2.0]), torch.tensor(0.25))
    assert one.compute() == again.compute()
