"""The page of a study's report."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lora_pl.ablation.groups import Group, Series, references_of
from lora_pl.ablation.published import PUBLISHED
from lora_pl.ablation.section7 import amplification_rows
from lora_pl.ablation.statistics import Comparison, Summary, compare, summarize, verdict
from lora_pl.ablation.table import FAILED, ResultTable
from lora_pl.errors import UserError

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #111; }
table { border-collapse: collapse; margin: 1em 0; } caption { text-align: left; color: #444; padding-bottom: .4em; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #ccc; }
th:first-child, td:first-child { text-align: left; } figure { margin: 1.5em 0; } img { max-width: 100%; }
figcaption { color: #444; } .verdict { font-weight: 600; } tr.published { color: #555; font-style: italic; }
"""


def make_page(
    table: ResultTable, series: list[Series], settings: dict[str, Any], images: dict[str, str], captions: dict[str, str]
) -> str:
    """The page; `images` are PNGs in base64, by name, as their captions are."""
    references = references_of(table.rows)
    parts = ["<h1>Rank ablation</h1>", f"<p>{html.escape(conditions(settings, table))}</p>"]
    parts += [_failed(table)] if table.trials(FAILED) else []
    parts += [_results(series, references)]
    for one in series:
        comparisons = compare_ranks(one)
        title = f" ({html.escape(one.name)})" if one.name else ""
        parts.append(f'<p class="verdict">{html.escape(verdict(comparisons, "points"))}{title}</p>')
        parts += [_differences(comparisons)] if comparisons else []
    parts += [_amplification(table.path.parent, series[0])] if series else []
    for name, image in images.items():
        alt = html.escape(captions[name])
        parts.append(
            f'<figure><img src="data:image/png;base64,{image}" alt="{alt}"><figcaption>{alt}</figcaption></figure>'
        )
    head = f'<meta charset="utf-8"><title>Rank ablation</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


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
        f"{settings.get('trainer.precision')}, {seeds} seeds. A seed sets the start of adapter and head, dropout and "
        "the order of the data."
    )


def _results(series: list[Series], references: list[Group]) -> str:
    rows = []
    for name, group in named_groups(series, references):
        cells = [name, f"{group.first['alpha']:g}" if group.rank else "", f"{group.first['learning_rate']:g}"]
        cells += [f"{group.first['trainable_lora']:,}", f"{group.first['trainable_head']:,}"]
        for which in ("last", "best"):
            cells.append(_percent(summarize(list(group.results(which).values()))))
        rows.append(_row([*cells, str(len(group.rows))]))
    for row in PUBLISHED:
        cells = [
            f"r = {row['r']}, {row['encoder']}, published",
            f"{row['alpha']:g}",
            f"{row['learning_rate']:g}",
            f"{row['trainable_lora']:,}",
        ]
        rows.append(_row([*cells, f"{row['trainable_head']:,}", f"{100 * row['last']:.2f}", "", "1"], "published"))
    heads = ["", "alpha", "learning rate", "LoRA", "head", "last epoch, %", "best epoch, %", "seeds"]
    caption = "Mean ± standard deviation over seeds. Rows in italics were published by others, and not measured here."
    return f"<table><caption>{caption}</caption>{_row(heads, cell='th')}{''.join(rows)}</table>"


def _differences(comparisons: Sequence[Comparison]) -> str:
    rows = []
    for c in comparisons:
        d, half = 100 * c.difference.mean, 100 * c.difference.half_width
        interval = f"{d - half:+.2f} to {d + half:+.2f}"
        rows.append(_row([f"({c.one}) - ({c.other})", f"{d:+.2f}", interval, f"{c.p:.3f}", f"{c.adjusted_p:.3f}"]))
    heads = ["difference, last epoch", "points", "95% interval", "p", "p, corrected"]
    caption = "Paired by seed; intervals are each pair's own, p is corrected for the number of pairs by Holm's method."
    return f"<table><caption>{caption}</caption>{_row(heads, cell='th')}{''.join(rows)}</table>"


def _amplification(folder: Path, series: Series) -> str:
    try:
        found = amplification_rows(folder, series)
    except UserError as error:
        return f"<p>Section 7.3 is left out: {html.escape(str(error))}</p>"
    rows = [_row([one.name, *(f"{value:.2f}" for value in list(vars(one).values())[1:])]) for one in found]
    heads = ["", "‖W‖", "‖ΔW‖", "‖UᵀWVᵀ‖ by ΔW", "by W", "by random", "‖ΔW‖ / ‖UᵀWVᵀ‖"]
    caption = (
        "Section 7.3 (the paper's Table 7): what W has in the first r singular directions of ΔW, of W itself and of a "
        "random matrix, and by which factor ΔW amplifies what W has in ΔW's. Frobenius norms, means over layers, "
        "first seed."
    )
    return f"<table><caption>{caption}</caption>{_row(heads, cell='th')}{''.join(rows)}</table>" if rows else ""


def _failed(table: ResultTable) -> str:
    rows = [_row([row["trial"], row["error"]]) for row in table.rows if row["status"] == FAILED]
    return f"<table><caption>Trials that failed; they are no part of what follows.</caption>{''.join(rows)}</table>"


def named_groups(series: Sequence[Series], references: Sequence[Group]) -> Iterable[tuple[str, Group]]:
    """Every group by a name that no other has."""
    for one in series:
        for group in one.groups:
            yield ", ".join(part for part in (group.name, one.name) if part), group
    for group in references:
        yield group.name, group


def _row(cells: Sequence[str], css: str = "", cell: str = "td") -> str:
    inner = "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in cells)
    return f'<tr class="{css}">{inner}</tr>' if css else f"<tr>{inner}</tr>"


def _percent(found: Summary) -> str:
    spread = "" if math.isnan(found.std) else f" ± {100 * found.std:.2f}"
    return f"{100 * found.mean:.2f}{spread}"
