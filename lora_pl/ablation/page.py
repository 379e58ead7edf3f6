"""The page of a study's report: what `report.html.jinja` is filled with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lora_pl.ablation.groups import Group, Series, references_of
from lora_pl.ablation.published import PUBLISHED
from lora_pl.ablation.section7 import amplification_rows
from lora_pl.ablation.statistics import Comparison, Summary, compare, summarize, verdict
from lora_pl.ablation.table import FAILED, ResultTable
from lora_pl.errors import UserError

TEMPLATE = "report.html.jinja"
TableRow = dict[str, Any]


def make_page(
    table: ResultTable, series: list[Series], settings: dict[str, Any], images: dict[str, str], captions: dict[str, str]
) -> str:
    """The page; `images` are PNGs in base64, by name, as their captions are."""
    from jinja2 import Environment

    source = resources.files("lora_pl.ablation").joinpath(TEMPLATE).read_text(encoding="utf-8")
    page: str = (
        Environment(autoescape=True, trim_blocks=True)
        .from_string(source)
        .render(
            conditions=conditions(settings, table),
            failed=[_cells(row["trial"], row["error"]) for row in table.rows if row["status"] == FAILED],
            results=[*_measured(series, references_of(table.rows)), *map(_published, PUBLISHED)],
            series=[_compared(one) for one in series],
            figures=[{"png": image, "caption": captions[name]} for name, image in images.items()],
            **_amplification(table.path.parent, series),
        )
    )
    return page


def compare_ranks(series: Series, which: Any = "last") -> list[Comparison]:
    """Every pair of ranks of a series, seed by seed."""
    return compare({group.name: group.results(which) for group in series.groups})


def conditions(settings: dict[str, Any], table: ResultTable) -> str:
    """What was trained on what, in a sentence or two."""
    encoder, source = (Path(str(settings.get(key))).name for key in ("model.encoder", "data.source"))
    sentences = settings.get("data.train_sentences")
    drawn = "by the study's data seed" if settings.get("data_seed") is not None else "anew by each seed"
    subset = f"{sentences:,} training sentences drawn at random {drawn}" if sentences else "all training sentences"
    seeds = len({row["seed"] for row in table.rows})
    return (
        f"{encoder} on {source}: {subset}, {settings.get('trainer.max_epochs')} epochs, batch "
        f"{settings.get('data.batch_size')}, {settings.get('model.schedule')} schedule, precision "
        f"{settings.get('trainer.precision')}, {seeds} seeds. A seed sets the initialization of adapter and head, "
        "dropout and the order of the data."
    )


def named_groups(series: Sequence[Series], references: Sequence[Group]) -> Iterable[tuple[str, Group]]:
    """Every group by a name of its own."""
    for one in series:
        for group in one.groups:
            yield ", ".join(part for part in (group.name, one.name) if part), group
    for group in references:
        yield group.name, group


def _measured(series: list[Series], references: list[Group]) -> Iterable[TableRow]:
    for name, group in named_groups(series, references):
        first = group.first
        results = [_percent(summarize(list(group.results(which).values()))) for which in ("last", "best")]
        yield _cells(
            name, f"{first['alpha']:g}" if group.rank else "", f"{first['learning_rate']:g}",
            f"{first['trainable_lora']:,}", f"{first['trainable_head']:,}", *results, len(group.rows),
        )  # fmt: skip


def _published(row: dict[str, Any]) -> TableRow:
    cells = _cells(
        f"r = {row['r']}, {row['encoder']}, published", f"{row['alpha']:g}", f"{row['learning_rate']:g}",
        f"{row['trainable_lora']:,}", f"{row['trainable_head']:,}", f"{100 * row['last']:.2f}", "", 1,
    )  # fmt: skip
    return {**cells, "published": True}


def _compared(series: Series) -> dict[str, Any]:
    comparisons = compare_ranks(series)
    return {
        "name": series.name,
        "verdict": verdict(comparisons, "points"),
        "differences": [_difference(comparison) for comparison in comparisons],
    }


def _difference(c: Comparison) -> TableRow:
    d, half = 100 * c.difference.mean, 100 * c.difference.half_width
    interval = f"{d - half:+.2f} to {d + half:+.2f}"
    return _cells(f"({c.one}) - ({c.other})", f"{d:+.2f}", interval, f"{c.p:.3f}", f"{c.adjusted_p:.3f}")


def _amplification(folder: Path, series: list[Series]) -> dict[str, Any]:
    """The rows of Table 7, or why there are none."""
    try:
        found = amplification_rows(folder, series[0]) if series else []
    except UserError as error:
        return {"left_out": f"Section 7.3 is left out: {error}"}
    return {"amplification": [_cells(*(_figure(value) for value in vars(one).values())) for one in found]}


def _figure(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"


def _cells(*cells: object) -> TableRow:
    return {"cells": cells}


def _percent(found: Summary) -> str:
    spread = "" if math.isnan(found.std) else f" ± {100 * found.std:.2f}"
    return f"{100 * found.mean:.2f}{spread}"
