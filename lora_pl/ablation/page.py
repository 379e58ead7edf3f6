"""The HTML page of a study's report."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lora_pl.ablation.grid import RANK
from lora_pl.ablation.groups import ARM, Series
from lora_pl.ablation.section7 import amplification_rows
from lora_pl.ablation.statistics import Comparison, compare, verdict
from lora_pl.ablation.table import FAILED, ResultTable, unit_of
from lora_pl.errors import UserError
from lora_pl.printable import printable

PUBLISHED: tuple[dict[str, Any], ...] = tuple(
    {
        "name": f"r = {r}, roberta-base, published",
        "encoder": "roberta-base",
        "task": "sst2",
        "r": r,
        "alpha": 16,
        "learning_rate": 1e-4,
        "seeds": 1,
        "trainable_lora": 36_864 * r,
        "last": accuracy,
        "trainable_head": 1_538,
        "trainable": 36_864 * r + 1_538,
        "epochs": 3,
        "source": "published for the recipe of configs/sst2_roberta_base.yaml, mixed precision; not measured here",
    }
    for r, accuracy in ((1, 0.9335), (2, 0.9369), (4, 0.9289), (8, 0.9346))
)
"""Published by others for comparison: one run per rank on all of SST-2; an accuracy's standard error is 0.0084."""


def make_page(
    table: ResultTable,
    series: Sequence[Series],
    summary: dict[str, Any],
    settings: dict[str, Any],
    figures: list[dict[str, str]],
    against: str | None = None,
) -> str:
    """`report.html.jinja`, filled in; each figure is `{"png": in base64, "caption"}`; see `compare` for `against`."""
    from jinja2 import Environment

    by_rank = [one for one in series if one.axis == RANK]
    source = resources.files("lora_pl.ablation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page: str = (
        Environment(autoescape=True, trim_blocks=True, finalize=_shown)
        .from_string(source)
        .render(
            conditions=_conditions(settings, table),
            failed=[(row["trial"], row["error"]) for row in table.rows if row["status"] == FAILED],
            unit=unit_of(next((row["metric"] for row in summary["measured"]), "")),
            measured=[*map(_result, summary["measured"])],
            published=[*map(_result, summary["published"])],
            series=[_compared(one, against) for one in series],
            figures=figures,
            **_amplification(table.path.parent, by_rank),
        )
    )
    return page


def _conditions(settings: dict[str, Any], table: ResultTable) -> str:
    """What all trials share; of what varies, the table tells."""
    told = {
        "model.encoder": "{}",
        "data.source": "on {}",
        "data.train_file": "on {}",
        "data.train_sentences": "{} training sentences",
        "trainer.limit_train_batches": "{} of the batches of an epoch",
        "trainer.max_epochs": "epochs: {}",
        "data.batch_size": "batch {}",
        "model.schedule": "{} schedule",
        "trainer.precision": "precision {}",
    }
    known = {**settings, "data.train_sentences": settings.get("data.train_sentences") or "all"}
    if known.get("data.train_file"):
        del known["data.source"]  # which is not read
    named = {key: Path(str(known[key])).name for key in told if known.get(key) is not None}
    drawn = "by the study's data seed" if settings.get("data_seed") is not None else "anew by each seed"
    parts = [told[key].format(value) for key, value in named.items()]
    seeds = len({row["seed"] for row in table.rows})
    return (
        f"{', '.join(parts)}, seeds: {seeds}. A seed sets the initialization of adapter and head, dropout and the "
        f"order of the data; a part of the training sentences is drawn {drawn}."
    )


def _result(row: dict[str, Any]) -> list[object]:
    """A row of the summary."""
    counts = (f"{row[key]:,}" for key in ("trainable_lora", "trainable_head", "trainable"))
    results = (_percent(row[key], row.get(f"{key}_std")) if key in row else "" for key in ("last", "best"))
    runs = f"{row['seeds']}, {row['folds']} folds each" if row.get("folds") else row["seeds"]
    return [row["name"], *counts, *results, runs]


def _compared(series: Series, against: str | None) -> dict[str, Any]:
    groups = {group.name: group.results() for group in series.groups}
    comparisons = compare(groups, against if against in groups else None)
    axis = "arms, each at its best point" if series.axis == ARM else series.axis
    return {
        "name": ": ".join(filter(None, (axis, series.name))),
        "verdict": verdict(comparisons),
        "differences": [_difference(comparison) for comparison in comparisons],
    }


def _difference(c: Comparison) -> list[str]:
    d, half = 100 * c.difference.mean, 100 * c.difference.half_width
    interval = f"{d - half:+.2f} to {d + half:+.2f}"
    return [f"({c.one}) - ({c.other})", f"{d:+.2f}", interval, f"{c.p:.3f}", f"{c.adjusted_p:.3f}"]


def _amplification(folder: Path, series: Sequence[Series]) -> dict[str, Any]:
    """The rows of Table 7, or why there are none."""
    try:
        return {"amplification": amplification_rows(folder, series[0]) if series else []}
    except UserError as error:
        return {"left_out": f"Section 7.3 is omitted: {error}"}


def _shown(value: Any) -> Any:
    own = not isinstance(value, str) or hasattr(value, "__html__")  # what the template has made itself
    return value if own else printable(value, kept="\n\t")


def _percent(value: float | None, deviation: float | None) -> str:
    if value is None:  # JSON has no NaN
        return "NaN"
    return f"{100 * value:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
