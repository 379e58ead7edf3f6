"""The finished trials of a table, grouped by what they share but the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lora_pl.ablation.table import OK, Row


@dataclass(frozen=True)
class Group:
    """The seeds of one setting."""

    name: str
    method: str
    rank: int
    rows: tuple[Row, ...]
    """The last epoch's row of each seed."""

    def results(self, which: Literal["last", "best"] = "last") -> dict[int, float]:
        """The metric by seed, at the last epoch or at the seed's best."""
        return {row["seed"]: row[which] for row in self.rows}

    @property
    def first(self) -> Row:
        """A row, for what all of them share."""
        return self.rows[0]


@dataclass(frozen=True)
class Series:
    """One setting at several ranks."""

    name: str
    """How it differs from the other series; empty if there is one series."""
    groups: tuple[Group, ...]


def series_of(rows: Sequence[Row]) -> list[Series]:
    """The LoRA trials as a series of ranks for each combination of the other axes."""
    axes = {"alpha_rule": "alpha {}", "targets": "on {}", "learning_rate": "learning rate {}"}
    lora = [row for row in _last_epochs(rows) if row["method"] == "lora"]
    varied = [axis for axis in axes if len({row[axis] for row in lora}) > 1]
    found = []
    for key in sorted({tuple(row[axis] for axis in axes) for row in lora}):
        own = [row for row in lora if tuple(row[axis] for axis in axes) == key]
        name = ", ".join(axes[axis].format(own[0][axis]) for axis in varied)
        ranks = sorted({row["rank"] for row in own})
        groups = [_group(f"r = {rank}", [row for row in own if row["rank"] == rank]) for rank in ranks]
        found.append(Series(name, tuple(groups)))
    return found


def references_of(rows: Sequence[Row]) -> list[Group]:
    """The trials without adapters, a group per method."""
    names = {"head": "head alone", "full": "full fine-tuning"}
    last = _last_epochs(rows)
    return [
        _group(name, own) for method, name in names.items() if (own := [row for row in last if row["method"] == method])
    ]


def _group(name: str, rows: list[Row]) -> Group:
    return Group(name, rows[0]["method"], rows[0]["rank"], tuple(sorted(rows, key=lambda row: row["seed"])))


def _last_epochs(rows: Sequence[Row]) -> list[Row]:
    last = {row["trial"]: row for row in rows if row["status"] == OK}  # rows go by epoch
    return list(last.values())
