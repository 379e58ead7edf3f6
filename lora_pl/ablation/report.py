"""The report of a study: figures, a summary, and one HTML page that holds all of it."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_pl.ablation.groups import Group, Series, references_of, series_of
from lora_pl.ablation.published import PUBLISHED
from lora_pl.ablation.statistics import Comparison, Summary, compare, summarize, verdict
from lora_pl.ablation.study import SETTINGS
from lora_pl.ablation.table import FAILED, ResultTable
from lora_pl.errors import UserError
from lora_pl.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lora_pl.ablation.record import Curve

EXTRA = "pip install 'lora_pl[ablation]'"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #111; }
table { border-collapse: collapse; margin: 1em 0; } caption { text-align: left; color: #444; padding-bottom: .4em; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #ccc; }
th:first-child, td:first-child { text-align: left; } figure { margin: 1.5em 0; } img { max-width: 100%; }
figcaption { color: #444; } .verdict { font-weight: 600; } tr.published { color: #555; font-style: italic; }
"""


def write_report(folder: Path) -> Path:
    """Write `report.html`, `summary.json` and `figures/*.{png,svg}` of the study in `folder`; the page's path.

    Raises:
        UserError: there is no study, no trial of it is finished, or the extra that draws is not installed.
    """
    missing = [name for name in ("matplotlib", "scipy") if find_spec(name) is None]
    if missing:
        raise UserError(f"report: {' and '.join(missing)} is not installed; {EXTRA}")
    table = ResultTable(folder)
    series = series_of(table.rows)
    if not series and not references_of(table.rows):
        raise UserError(f"{folder}: no finished trial; expected the folder of `lora_pl ablate`")
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    figures = _figures(folder, series, references_of(table.rows))
    images = {name: _save(figure, folder / "figures" / name) for name, (figure, _) in figures.items()}
    captions = {name: caption for name, (_, caption) in figures.items()}
    write_whole(
        folder / "summary.json",
        lambda beside: _write_json(summary(series, references_of(table.rows), settings), beside),
    )
    page = _page(table, series, settings, images, captions)
    path = folder / "report.html"
    write_whole(path, lambda beside: beside.write_text(page, encoding="utf-8"))
    return path


def summary(series: Sequence[Series], references: Sequence[Group], settings: dict[str, Any]) -> dict[str, Any]:
    """What `summary.json` holds: a row per group with mean and deviation, and the published rows, marked as such."""
    shared = {"encoder": settings.get("model.encoder"), "task": settings.get("data.task") or "sst2"}
    shared["train_sentences"] = settings.get("data.train_sentences")
    rows = []
    for name, group in _named_groups(series, references):
        best, last = (summarize(list(group.results(which).values())) for which in ("best", "last"))
        rows.append(
            {
                **shared,
                "name": name,
                "method": group.method,
                "r": group.rank,
                **{key: group.first[key] for key in ("alpha", "alpha_rule", "targets", "learning_rate")},
                **{key: group.first[key] for key in ("trainable_lora", "trainable_head", "trainable")},
                "epochs": group.first["epoch"],
                "seeds": last.n,
                "metric": group.first["metric"],
                "best": _clean(best.mean),
                "best_std": _clean(best.std),
                "last": _clean(last.mean),
                "last_std": _clean(last.std),
                "source": "measured",
            }
        )
    return {"measured": rows, "published": list(PUBLISHED)}


def _figures(folder: Path, series: list[Series], references: list[Group]) -> dict[str, tuple[Figure, str]]:
    from lora_pl.ablation import figures
    from lora_pl.ablation.section7 import section7_figures

    metric = (series[0].groups[0] if series else references[0]).first["metric"]
    found = {
        "accuracy_by_rank": (
            figures.accuracy_by_rank(series, references, metric),
            f"Validation {metric} after the last epoch. Small marks are runs, one per seed; large marks their mean "
            "with the t-based 95% interval of the mean.",
        )
    }
    if series:
        found["parameters_by_rank"] = (
            figures.parameters_by_rank(series),
            "Trained parameters of LoRA by rank (both axes logarithmic): r (in + out) per adapted layer.",
        )
        found["loss_curves"] = (
            figures.loss_curves(series[0], _curves(folder, series[0])),
            f"Training loss{f' ({series[0].name})' if series[0].name else ''}, exponentially smoothed: mean over seeds "
            "and, shaded, lowest to highest.",
        )
        found |= section7_figures(folder, series[0])
    return found


def _curves(folder: Path, series: Series) -> dict[str, Curve]:
    names = [row["trial"] for group in series.groups for row in group.rows]
    paths = {name: folder / "trials" / name / "metrics.json" for name in names}
    return {name: json.loads(path.read_text())["loss_curve"] for name, path in paths.items() if path.is_file()}


def _save(figure: Figure, path: Path) -> str:
    """Write PATH.png and PATH.svg; the PNG as a page embeds it."""
    import matplotlib

    for suffix in ("png", "svg"):
        # no date and no random ids: the same study gives the same files
        with matplotlib.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
            content = io.BytesIO()
            figure.savefig(content, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
        write_whole(path.with_name(f"{path.name}.{suffix}"), lambda beside, c=content: beside.write_bytes(c.getvalue()))  # type: ignore[misc]
    return base64.b64encode(path.with_name(f"{path.name}.png").read_bytes()).decode()


def _page(
    table: ResultTable, series: list[Series], settings: dict[str, Any], images: dict[str, str], captions: dict[str, str]
) -> str:
    references = references_of(table.rows)
    parts = ["<h1>Rank ablation</h1>", f"<p>{html.escape(conditions(settings, table))}</p>"]
    parts += [_failed(table)] if table.trials(FAILED) else []
    parts += [_results(series, references)]
    for one in series:
        comparisons = compare_ranks(one)
        title = f" ({html.escape(one.name)})" if one.name else ""
        parts.append(f'<p class="verdict">{html.escape(verdict(comparisons, "points"))}{title}</p>')
        parts += [_differences(comparisons)] if comparisons else []
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
    for name, group in _named_groups(series, references):
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


def _failed(table: ResultTable) -> str:
    rows = [_row([row["trial"], row["error"]]) for row in table.rows if row["status"] == FAILED]
    return f"<table><caption>Trials that failed; they are no part of what follows.</caption>{''.join(rows)}</table>"


def _named_groups(series: Sequence[Series], references: Sequence[Group]) -> Iterable[tuple[str, Group]]:
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


def _clean(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write_json(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
