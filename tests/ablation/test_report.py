"""The report of a table that needs no training."""

import json
import math

import pytest

from lora_pl.ablation.grid import Trial
from lora_pl.ablation.report import write_report
from lora_pl.ablation.table import ResultTable, trial_rows

RANK = "model.lora.r"


@pytest.mark.usefixtures("empty_figures")
def test_runs_whose_metric_is_nan(tmp_path):
    """Some of r = 2, all of r = 4: JSON has no NaN, the page has; and nothing is compared with them."""
    table = ResultTable(tmp_path)
    (tmp_path / "settings.json").write_text("{}")
    values = {1: (0.5, 0.6), 2: (0.7, math.nan), 4: (math.nan, math.nan), 8: (0.8, 0.9)}
    for rank, results in values.items():
        for seed, value in enumerate(results):
            epoch = {"epoch": 1, "metric": "accuracy", "validation": value}
            counts = {"trainable_lora": rank, "trainable_head": 1, "trainable": rank + 1}
            table.add(trial_rows(Trial("LoRA", seed, {RANK: rank}, {RANK: rank}), [{**epoch, **counts}]))
    page = write_report(tmp_path).read_text()
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert [row["last"] for row in summary["measured"]] == [pytest.approx(0.55), None, None, pytest.approx(0.85)]
    assert page.count("<td>NaN") == 4
    assert "(r = 1) - (r = 8)" in page
    assert "(r = 1) - (r = 2)" not in page
