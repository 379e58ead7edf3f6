"""The finished trials of a table, grouped by what they share but seed and fold, and set side by side along an axis."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from lora_pl.ablation.grid import ALPHA_RULE, ARM_NAMES, RANK
from lora_pl.ablation.statistics import summarize
from lora_pl.ablation.table import OK, Row, axes_of, best_known, value_order
from lora_pl.data.held_out import VALIDATES

ARM, FOLD = "arm", "data.fold"
TOLD = {
    **dict.fromkeys((ARM, "data.task", "data.source"), "{}"),
    ALPHA_RULE: "alpha {}",
    RANK: "r = {}",
    "model.lora.target_modules": "on {}",
    "model.learning_rate": "learning rate {}",
}
"""How a value is told; by default after the last part of the option's name."""
SENTENCES = ("data.task", "data.source", "data.train_file", *(f"data.{name}" for name in VALIDATES))
"""Axes that results are not compared along: theirs are other sentences."""
T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The seeds of one setting, and its folds."""

    name: str
    """In a series its value there, else all that varies."""
    rows: tuple[Row, ...]
    """The last epoch's row of each seed and fold."""

    def results(self, which: Literal["last", "best"] = "last") -> dict[tuple[int, str | None], float]:
        """The metric by seed and fold, at the last epoch or at the trial's best."""
        return {(row["seed"], row.get(FOLD)): row[which] for row in self.rows}

    @property
    def first(self) -> Row:
        """A row, for what all of them share."""
        return self.rows[0]

    @property
    def mean(self) -> float:
        """Of the metric after the last epoch."""
        return summarize(list(self.results().values())).mean


@dataclass(frozen=True)
class Series:
    """Settings that differ along one axis."""

    axis: str
    name: str
    """What sets it apart from the study's other settings; empty if nothing does."""
    groups: tuple[Group, ...]


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """Every setting."""
    last = list({row["trial"]: row for row in rows if row["status"] == OK}.values())  # rows go by epoch
    names = _settings(last)
    varied = _varied(last, names)
    return [Group(_said(own[0], varied), tuple(own)) for own in apart(last, lambda row: _values(row, names))]


def series_of(groups: Sequence[Group]) -> list[Series]:
    """Each arm's settings along each of its axes, at every point of the others."""
    names = _settings([group.first for group in groups])
    told = _varied([group.first for group in groups], names)
    found = []
    for arm in apart(groups, lambda group: group.first[ARM]):
        for axis in _varied([group.first for group in arm], set(names) - {*SENTENCES}):
            others = [name for name in names if name != axis]
            for beside in apart(arm, lambda group, others=others: _values(group.first, others)):  # type: ignore[misc]
                name = _said(beside[0].first, [other for other in told if other != axis])
                ordered = sorted(beside, key=lambda group, axis=axis: value_order(group.first[axis]))  # type: ignore[misc]
                found.append(Series(axis, name, tuple(_renamed(group, [axis]) for group in ordered)))
    return [series for series in found if len(series.groups) > 1]


def arms_of(groups: Sequence[Group]) -> list[Series]:
    """The arms on each set of sentences, each at the point of its axes with the best mean."""
    found = []
    rows = [group.first for group in groups]
    where, own_axes = _varied(rows, SENTENCES), _varied(rows, {*_settings(rows)} - {*SENTENCES})
    for same in apart(groups, lambda group: _values(group.first, SENTENCES)):
        arms, metric = apart(same, lambda group: group.first[ARM]), same[0].first["metric"]
        best = [best_known(metric, own, lambda group: group.mean) for own in arms]
        found.append(Series(ARM, _said(same[0].first, where), tuple(_renamed(group, own_axes) for group in best)))
    return [series for series in found if len(series.groups) > 1]


def apart(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items with the same key together, in the order of the first of each."""
    found: dict[Hashable, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.values())


def _renamed(group: Group, names: Iterable[str]) -> Group:
    return replace(group, name=_said(group.first, names))


def _settings(rows: Sequence[Row]) -> list[str]:
    """The arm and the axes; folds are samples of one setting, as seeds are."""
    return [ARM, *(axis for axis in axes_of(rows) if axis != FOLD)]


def _values(row: Row, names: Iterable[str]) -> tuple[str | None, ...]:
    return tuple(row.get(name) for name in names)


def _varied(rows: Sequence[Row], names: Collection[str]) -> list[str]:
    """The axes with more than one value, the arm first."""
    ordered = sorted(names, key=lambda name: (name != ARM, name))
    return [name for name in ordered if len({row.get(name) for row in rows}) > 1]


def _said(row: Row, names: Iterable[str]) -> str:
    told = [(TOLD.get(name) or f"{name.rpartition('.')[2]} {{}}").format(row[name]) for name in names if name in row]
    return ", ".join(told[1:] if len(told) > 1 and told[0] == ARM_NAMES["lora"] else told)
