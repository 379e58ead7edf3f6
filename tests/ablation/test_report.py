"""The report of a table that needs no training."""

import json
import math

import pytest

from lora_pl.ablation.grid import Trial
from lora_pl.ablation.report import write_report
from lora_pl.ablation.table import ResultTable, trial_rows
from lora_pl.errors import UserError

RANK = "model.lora.r"


def filled(folder, values):
    """A study of ranks in `folder`, with these results by rank and seed."""
    table = ResultTable(folder)
    (folder / "settings.json").write_text("{}")
    for rank, results in values.items():
        for seed, value in enumerate(results):
            epoch = {"epoch": 1, "metric": "accuracy", "validation": value}
            counts = {"trainable_lora": rank, "trainable_head": 1, "trainable": rank + 1}
            table.add(trial_rows(Trial("LoRA", seed, {RANK: rank}, {RANK: rank}), [{**epoch, **counts}]))
    return folder


@pytest.mark.usefixtures("empty_figures")
def test_a_row_is_what_the_others_are_compared_with(tmp_path):
    """Alone, and p is corrected for that many comparisons."""
    folder = filled(tmp_path, {1: (0.5, 0.6, 0.7), 2: (0.71, 0.8, 0.93), 4: (0.6, 0.9, 0.5)})
    page = write_report(folder, "r = 2").read_text()
    assert "Holm&#39;s correction for 2 comparisons" in page
    assert all(f"({other}) - (r = 2)" in page for other in ("r = 1", "r = 4"))
    assert "(r = 1) - (r = 4)" not in page
    with pytest.raises(UserError, match="^report.against: expected one of r = 1; r = 2; r = 4; got r = 3"):
        write_report(folder, "r = 3")


@pytest.mark.usefixtures("empty_figures")
def test_runs_whose_metric_is_nan(tmp_path):
    """Some of r = 2, all of r = 4: JSON has no NaN, the page has; and nothing is compared with them."""
    values = {1: (0.5, 0.6), 2: (0.7, math.nan), 4: (math.nan, math.nan), 8: (0.8, 0.9)}
    page = write_report(filled(tmp_path, values)).read_text()
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert [row["last"] for row in summary["measured"]] == [pytest.approx(0.55), None, None, pytest.approx(0.85)]
    assert page.count("<td>NaN") == 4
    assert "(r = 1) - (r = 8)" in page
    assert "(r = 1) - (r = 2)" not in page
