import math

import pytest

from lora_pl.ablation.statistics import compare, holm, summarize, verdict


def test_the_interval_is_students():
    """t(4) = 2.776 at 95%."""
    found = summarize([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.std) == pytest.approx((3, math.sqrt(2.5)))
    assert found.half_width == pytest.approx(2.776 * math.sqrt(2.5 / 5), rel=1e-3)
    assert math.isnan(summarize([1.0]).half_width)
    assert math.isnan(summarize([1.0, math.nan]).std)


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_pairs_are_compared_on_the_seeds_that_both_have():
    groups = {"a": {0: 0.5, 1: 0.6, 2: 0.7}, "b": {0: 0.4, 1: 0.51, 3: 0.9}, "c": {7: 0.1}}
    (found,) = compare(groups)
    assert (found.one, found.other, found.difference.n) == ("a", "b", 2)
    assert found.difference.mean == pytest.approx(0.095)


def test_the_verdict_tells_a_difference_from_noise():
    seeds = range(5)
    wobble = [0.01, -0.012, 0.004, -0.009, 0.008]
    alike = {"r = 1": dict(enumerate(wobble)), "r = 2": dict(zip(seeds, wobble[1:] + wobble[:1], strict=True))}
    assert verdict(compare(alike)).startswith("None differs from another by more than the noise")
    apart = {"r = 1": alike["r = 1"], "r = 2": {seed: value + 0.05 for seed, value in alike["r = 2"].items()}}
    said = verdict(compare(apart))
    assert said.startswith("1 of 1 differences are larger than the noise (paired t-tests over 5 pairs")
    assert "r = 1 - r = 2: -5.0" in said
    assert "fewer than two seeds or folds" in verdict([])
