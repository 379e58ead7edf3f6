"""The table of a study, a row per trial and epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lora_pl.ablation.grid import Trial
from lora_pl.errors import UserError, first_line
from lora_pl.storage.write_whole import write_whole

Row = dict[str, Any]

COLUMNS: dict[str, str] = {
    "trial": "string",
    "status": "string",  # ok or failed
    "method": "string",
    "rank": "int64",
    "seed": "int64",
    "learning_rate": "double",
    "alpha_rule": "string",
    "alpha": "double",
    "scaling": "double",
    "targets": "string",
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
}
TIMES = ("seconds", "sentences_per_second")
"""The columns that differ from run to run."""
ORDER = ("method", "targets", "alpha_rule", "learning_rate", "rank", "seed")
FILLED = ("trial", "status", "method", "seed")
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
        rows = list(rows)
        new = {row["trial"] for row in rows}
        kept = [row for row in self.rows if row["trial"] not in new]
        # in an order that does not depend on which trial was finished first
        self.rows = sorted([*kept, *rows], key=lambda row: (*(row[key] for key in ORDER), row["epoch"] or 0))
        self._write()

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet

        table = pa.Table.from_pylist(self.rows, schema=_schema())
        write_whole(self.path, lambda beside: pyarrow.parquet.write_table(table, beside))
        write_whole(self.path.with_suffix(".csv"), lambda beside: pyarrow.csv.write_csv(table, beside))


def trial_rows(trial: Trial, epochs: Sequence[Row]) -> list[Row]:
    """The rows of a finished trial: `epochs` with the trial's settings, its best and its last metric."""
    values = [epoch["validation"] for epoch in epochs]
    ends = {"best": max(values), "last": values[-1], "status": OK, "error": ""}
    return [{**dict.fromkeys(COLUMNS), **_settings(trial), **ends, **epoch} for epoch in epochs]


def failed_row(trial: Trial, error: str) -> Row:
    """The row of a failed trial."""
    return {**dict.fromkeys(COLUMNS), **_settings(trial), "status": FAILED, "error": error}


def _settings(trial: Trial) -> Row:
    return {
        "trial": trial.name,
        "method": trial.method,
        "rank": trial.rank,
        "seed": trial.seed,
        "learning_rate": trial.learning_rate,
        "alpha_rule": trial.alpha_rule if trial.method == "lora" else "",
        "alpha": trial.alpha,
        "scaling": trial.scale,
        "targets": ",".join(trial.targets),
    }


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema([pa.field(name, pa.type_for_alias(kind), name not in FILLED) for name, kind in COLUMNS.items()])


def _read(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError("table", f"{path} can't be read ({first_line(error)}); move it away") from error
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(
            "table", f"{path} is not the table of a study: no columns {', '.join(missing)}; give another --output"
        )
    try:
        rows: list[Row] = table.select(list(COLUMNS)).cast(_schema()).to_pylist()
    except (pa.ArrowException, ValueError) as error:  # a ValueError: nulls
        raise UserError("table", f"{path} has a column of another type ({first_line(error)}); move it away") from error
    return rows
