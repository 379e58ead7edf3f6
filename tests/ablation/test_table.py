import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_pl.ablation.grid import Trial
from lora_pl.ablation.table import COLUMNS, ResultTable, failed_row, trial_rows
from lora_pl.errors import UserError

RANK = "model.lora.r"
TRIALS = [Trial("LoRA", seed, {RANK: rank}, {RANK: rank}) for seed in (0, 1) for rank in (2, 16)]


def rows(trial: Trial, metric: str = "accuracy") -> list[dict]:
    epochs = [{"epoch": epoch, "validation": 0.1 * trial.axes[RANK] / epoch, "metric": metric} for epoch in (1, 2)]
    return trial_rows(trial, epochs)


def test_the_order_of_finishing_leaves_no_trace(tmp_path):
    for name, order in (("one", TRIALS), ("other", TRIALS[::-1])):
        table = ResultTable(tmp_path / name)
        for trial in order:
            table.add(rows(trial))
    one, other = (ResultTable(tmp_path / name).rows for name in ("one", "other"))
    assert one == other
    assert len(one) == 8
    assert [row[RANK] for row in one] == ["2"] * 4 + ["16"] * 4
    for suffix in ("parquet", "csv"):
        files = [(tmp_path / name / f"table.{suffix}").read_bytes() for name in ("one", "other")]
        assert files[0] == files[1]


def test_a_trial_that_is_run_again_takes_the_place_of_what_was_known(tmp_path):
    table = ResultTable(tmp_path)
    table.add([failed_row(TRIALS[0], "RuntimeError: out of memory"), *rows(TRIALS[1])])
    assert ResultTable(tmp_path).trials("failed") == {TRIALS[0].name}
    table.add(rows(TRIALS[0]))
    assert ResultTable(tmp_path).trials("failed") == set()
    assert {row["trial"] for row in ResultTable(tmp_path).rows} == {TRIALS[0].name, TRIALS[1].name}
    best, last = {(row["best"], row["last"]) for row in rows(TRIALS[1])}.pop()
    assert best == 2 * last
    assert all(row["best"] == row["last"] == last for row in rows(TRIALS[1], "loss"))


@pytest.mark.parametrize("values", [(math.nan, 0.9, 0.5), (0.5, 0.9, math.nan)])
def test_nan_is_best_only_where_there_is_nothing_else(values):
    epochs = [{"epoch": epoch, "validation": value, "metric": "accuracy"} for epoch, value in enumerate(values, 1)]
    assert {row["best"] for row in trial_rows(TRIALS[0], epochs)} == {0.9}
    (row,) = trial_rows(TRIALS[0], [{**epochs[0], "validation": math.nan}])
    assert math.isnan(row["best"])


def test_a_file_that_is_no_table_is_named(tmp_path):
    (tmp_path / "table.parquet").write_bytes(b"PAR1 but cut")
    with pytest.raises(UserError) as damaged:
        ResultTable(tmp_path)
    for columns in ({"x": [1]}, {**{name: [None] for name in COLUMNS}, "seed": [0]}):
        pq.write_table(pa.table(columns), tmp_path / "table.parquet")
        with pytest.raises(UserError) as another:
            ResultTable(tmp_path)
        assert damaged.value.key == another.value.key == "table"
