"""Means, intervals and paired comparisons over runs that differ in their seed, or seed and fold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

CONFIDENCE = 0.95
MOST_LISTED = 3
"""Differences that a sentence names; of more the table tells."""


@dataclass(frozen=True)
class Summary:
    """Size, mean and standard deviation of a sample, and the half-width of the mean's interval."""

    n: int
    mean: float
    std: float
    """Of the sample (n - 1); NaN where n is 1 or a value is NaN."""
    half_width: float
    """t(n - 1) std / sqrt(n) at 95%; NaN where the deviation is."""


@dataclass(frozen=True)
class Comparison:
    """Two groups, compared run by run."""

    one: str
    other: str
    difference: Summary
    """Of one - other."""
    p: float
    """Of the two-sided paired t-test."""
    adjusted_p: float
    """After Holm's correction over all pairs that are compared."""


def summarize(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and the t-based 95% interval of some runs' results."""
    from scipy import stats

    n, centre = len(values), mean(values)
    if n < 2 or math.isnan(centre):
        return Summary(n, centre, math.nan, math.nan)
    deviation = stdev(values)
    return Summary(n, centre, deviation, float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n))


def compare(groups: Mapping[str, Mapping[Any, float]], against: str | None = None) -> list[Comparison]:
    """Paired t-tests of every two groups with at least two keys in common and no NaN there, corrected by `holm`.

    A group has its results by what pairs them: the seed, or seed and fold. With the group `against`, each other group
    is compared with it alone, which leaves fewer comparisons to correct for.
    """
    every = [*itertools.combinations(groups, 2)]
    pairs = []
    for one, other in every if against is None else [(one, against) for one in groups if one != against]:
        differences = [result - groups[other][key] for key, result in groups[one].items() if key in groups[other]]
        if len(differences) > 1 and not any(map(math.isnan, differences)):
            pairs.append((one, other, summarize(differences), _p_value(differences)))
    adjusted = holm([pair[3] for pair in pairs])
    return [Comparison(*pair, adjusted_p=p) for pair, p in zip(pairs, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the k-th smallest of m times m - k + 1, and none below an earlier one."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def verdict(comparisons: Sequence[Comparison]) -> str:
    """One sentence: whether any group differs from another by more than the noise."""
    if not comparisons:
        return "With fewer than two seeds or folds nothing can be said about noise."
    pairs = min(comparison.difference.n for comparison in comparisons)
    how = f"paired t-tests over {pairs} pairs, Holm's correction for {len(comparisons)} comparisons"
    found = [c for c in comparisons if c.adjusted_p < 1 - CONFIDENCE]
    if not found:
        least = min(comparison.adjusted_p for comparison in comparisons)
        return f"None differs from another by more than the noise ({how}; smallest corrected p = {least:.2g})."
    told = [f"{c.one} - {c.other}: {100 * c.difference.mean:+.2f} points, p = {c.adjusted_p:.2g}" for c in found]
    listed = f": {'; '.join(told)}" if len(told) <= MOST_LISTED else ""
    return f"{len(found)} of {len(comparisons)} differences are larger than the noise ({how}){listed}."


def _p_value(differences: Sequence[float]) -> float:
    from scipy import stats

    if stdev(differences) == 0:  # the test divides by it
        return 1.0 if mean(differences) == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)
