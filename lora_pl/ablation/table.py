"""The table of a study, a row per trial and epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lora_pl.ablation.grid import RANK, Trial, told
from lora_pl.errors import UserError, first_line
from lora_pl.model.monitor import mode_of
from lora_pl.storage.schema import parse_json, require_json
from lora_pl.storage.write_whole import write_whole

Row = dict[str, Any]
T = TypeVar("T")

COLUMNS: dict[str, str] = {
    "trial": "string",
    "status": "string",  # ok or failed
    "arm": "string",
    "method": "string",
    "seed": "int64",
    "trainable_lora": "int64",
    "trainable_head": "int64",
    "trainable": "int64",
    "epoch": "int64",  # from 1
    "train_loss": "double",  # mean over the epoch's sentences, with dropout
    "validation_loss": "double",
    "metric": "string",
    "validation": "double",
    "best": "double",  # of the trial's epochs
    "last": "double",
    "pack": "int64",  # how many trials were trained jointly
    "seconds": "double",  # of the epoch with its validation; the same for joint trials
    "sentences_per_second": "double",  # the trial's own, while training
    "error": "string",
    "options": "string",  # the trial's own, as JSON
}
"""Those of every study; each axis has one more, of its values' texts."""
FILLED = ("trial", "status", "arm", "method", "seed", "options")
"""The columns without nulls."""
OK, FAILED = "ok", "failed"


class ResultTable:
    """`table.parquet` in the folder of a study, and the same as `table.csv`; with all rows of a trial or none.

    Raises:
        UserError: `table`, the file can't be read or is not the table of a study.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "table.parquet"
        self.rows: list[Row] = _read(self.path) if self.path.is_file() else []

    def trials(self, status: str = OK) -> set[str]:
        """The names of the trials of this status."""
        return {row["trial"] for row in self.rows if row["status"] == status}

    def add(self, rows: Iterable[Row]) -> None:
        """Add all rows of some trials, in place of their earlier rows, and write the files."""
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet

        rows = list(rows)
        new = {row["trial"] for row in rows}
        kept = [row for row in self.rows if row["trial"] not in new]
        # in an order that does not depend on which trial was finished first
        self.rows = sorted([*kept, *rows], key=_place)
        table = pa.Table.from_pylist(self.rows, schema=_schema(axes_of(self.rows)))
        write_whole(self.path, lambda beside: pyarrow.parquet.write_table(table, beside))
        write_whole(self.path.with_suffix(".csv"), lambda beside: pyarrow.csv.write_csv(table, beside))


def trial_rows(trial: Trial, epochs: Sequence[Row]) -> list[Row]:
    """The rows of a finished trial: `epochs` with the trial's settings, its best and its last metric."""
    values = [epoch["validation"] for epoch in epochs]
    ends = {"best": best_known(epochs[0]["metric"], values), "last": values[-1], "status": OK, "error": ""}
    return [{**dict.fromkeys(COLUMNS), **_settings(trial), **ends, **epoch} for epoch in epochs]


def best_known(metric: str, items: Sequence[T], value: Callable[[T], float] = float) -> T:  # type: ignore[assignment]
    """The item with the best value of a metric; one whose value is NaN only if all are."""
    known = [item for item in items if not math.isnan(value(item))]
    best: Callable[..., T] = min if mode_of(metric) == "min" else max
    return best(known or items, key=value)


def failed_row(trial: Trial, error: str) -> Row:
    """The row of a failed trial."""
    return {**dict.fromkeys(COLUMNS), **_settings(trial), "status": FAILED, "error": error}


def options_text(trial: Trial) -> str:
    """Its own options as the table has them."""
    return json.dumps(trial.options, sort_keys=True)


def options_of(row: Row) -> dict[str, Any]:
    """The trial's own options; a UserError, `table`, if the row is damaged."""
    where = f"the table's options of {row['trial']}"
    options: dict[str, Any] = parse_json(row["options"].encode(), "table", where)
    require_json(options, dict[str, Any], "table", f"{where}: ")
    return options


def axes_of(rows: Sequence[Row]) -> list[str]:
    """The axes of a study, in alphabetical order."""
    return sorted({key for row in rows for key in row} - COLUMNS.keys())


def unit_of(metric: str) -> str:
    """The unit in which a report shows a metric, of which it always shows 100 times the value."""
    return "x 100" if mode_of(metric) == "min" else "%"


def value_order(text: str | None) -> tuple[float, str]:
    """Sorts the values of an axis: numbers by size, then texts."""
    try:
        return float(text or 0), ""
    except ValueError:
        return math.inf, str(text)


def _place(row: Row) -> tuple[Any, ...]:
    axes = [(key, value_order(row[key])) for key in axes_of([row])]
    return row["method"], row["arm"], axes, row["seed"], row["epoch"] or 0


def _settings(trial: Trial) -> Row:
    axes = {key: told(value) for key, value in trial.axes.items()}
    own = {"trial": trial.name, "arm": trial.arm, "method": trial.method, "seed": trial.seed}
    return {**own, "options": options_text(trial), **axes}


def _schema(axes: Sequence[str]) -> Any:
    import pyarrow as pa

    columns = {**COLUMNS, **dict.fromkeys(axes, "string")}
    return pa.schema([pa.field(name, pa.type_for_alias(kind), name not in FILLED) for name, kind in columns.items()])


def _read(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        names = table.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError("table", f"{path} can't be read ({first_line(error)}); move it away") from error
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise UserError(
            "table",
            f"{path} is not the table of a study, or one of an earlier version: no columns {', '.join(missing)}; give "
            "another --output",
        )
    axes = [name for name in names if name not in COLUMNS]
    try:
        rows: list[Row] = table.select([*COLUMNS, *axes]).cast(_schema(axes)).to_pylist()
    except (pa.ArrowException, ValueError) as error:  # a ValueError: nulls
        raise UserError("table", f"{path} has a column of another type ({first_line(error)}); move it away") from error
    if wrong := [row[RANK] for row in rows if not (row.get(RANK) or "1").isdecimal()]:
        raise UserError("table", f"{path} has the rank {wrong[0]!r:.40}; move it away")
    return [{key: value for key, value in row.items() if key in COLUMNS or value is not None} for row in rows]
