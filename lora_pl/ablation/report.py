"""The report of a study: figures, a summary, and one HTML page with all of it."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from lora_pl.ablation.figures import along_axis, loss_curves, parameters_by_rank
from lora_pl.ablation.grid import RANK, file_name, meant_task
from lora_pl.ablation.groups import ARM, FOLD, SENTENCES, Group, Series, apart, arms_of, groups_of, series_of
from lora_pl.ablation.page import PUBLISHED, make_page
from lora_pl.ablation.section7 import section7_figures
from lora_pl.ablation.statistics import summarize
from lora_pl.ablation.study import stored_settings
from lora_pl.ablation.table import ResultTable, axes_of, options_of
from lora_pl.errors import UserError
from lora_pl.storage.schema import parse_json, require_json
from lora_pl.storage.write_whole import write_text_whole, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lora_pl.ablation.record import Curve


class Metrics(TypedDict):
    """What the report reads of a trial's `metrics.json`."""

    loss_curve: list[tuple[int, float]]


def write_report(folder: Path, against: str | None = None) -> Path:
    """Write `report.html`, `summary.json` and `figures/*.{png,svg}` of the study in `folder`; the page's path.

    Where a series has a row of the name `against`, each other row is compared with it alone.

    Raises:
        UserError: `report`, no trial in the folder is finished; `report.against`, nothing has that name;
            `report.extra`, matplotlib or scipy is missing.
    """
    missing = [name for name in ("matplotlib", "scipy") if find_spec(name) is None]
    if missing:
        raise UserError(
            "report.extra",
            f"{' and '.join(missing)} is not installed; pip install 'lora_pl[ablation]', then "
            f"lora_pl ablate report {folder}",
        )
    table = ResultTable(folder)
    groups = groups_of(table.rows)
    if not groups:
        raise UserError("report", f"{folder} holds no finished trial; expected the folder of `lora_pl ablate`")
    settings = stored_settings(folder) or {}
    series = [*arms_of(groups), *series_of(groups)]
    names = dict.fromkeys(group.name for one in series for group in one.groups)
    if against not in (None, *names):
        raise UserError("report.against", f"expected one of {'; '.join(names)}; got {against}")
    figures = [
        {"png": _save(figure, folder / "figures" / name), "caption": caption}
        for name, (figure, caption) in _figures(folder, series).items()
    ]
    measured = [_summary(group, settings) for group in groups]
    compares = any(one.axis == RANK for one in series) and all(row["task"] == "sst2" for row in measured)
    summary = {"measured": measured, "published": list(PUBLISHED) if compares else []}
    write_text_whole(folder / "summary.json", json.dumps(summary, indent=2))
    page = make_page(table, series, summary, settings, figures, against)
    path = folder / "report.html"
    write_text_whole(path, page)
    return path


def _summary(group: Group, settings: dict[str, Any]) -> dict[str, Any]:
    """A row of `summary.json`: a setting with its options, parameters, and mean and deviation over its runs."""
    best, last = (summarize(list(group.results(which).values())) for which in ("best", "last"))
    options = {**settings, **options_of(group.first)}
    return {
        "name": group.name,
        "encoder": options.get("model.encoder"),
        "task": meant_task(options),
        "train_sentences": options.get("data.train_sentences"),
        **{key: group.first[key] for key in ("arm", "method", "trainable_lora", "trainable_head", "trainable")},
        "options": {key: group.first[key] for key in axes_of([group.first])},
        "metric": group.first["metric"],
        "epochs": group.first["epoch"],
        "seeds": len({row["seed"] for row in group.rows}),
        "folds": len({row.get(FOLD) for row in group.rows} - {None}),
        "best": _clean(best.mean),
        "best_std": _clean(best.std),
        "last": _clean(last.mean),
        "last_std": _clean(last.std),
        "source": "measured",
    }


def _figures(folder: Path, series: Sequence[Series]) -> dict[str, tuple[Figure, str]]:
    found = dict(_along_axis(same, series) for same in apart(series, lambda one: (one.axis, *_sentences(one))))
    by_rank = [one for one in series if one.axis == RANK]
    if by_rank:
        found["parameters_by_rank"] = (
            parameters_by_rank(by_rank),
            "Trained parameters of LoRA by rank (both axes logarithmic): r (in + out) per adapted layer.",
        )
    for one in (by_rank or series)[:1]:
        found["loss_curves"] = (
            loss_curves(one, _curves(folder, one)),
            f"Training loss{f' ({one.name})' if one.name else ''}, exponentially smoothed: mean over runs "
            "and, shaded, lowest to highest.",
        )
    return found | (section7_figures(folder, by_rank[0]) if by_rank else {})


def _along_axis(same: Sequence[Series], series: Sequence[Series]) -> tuple[str, tuple[Figure, str]]:
    """Name, figure and caption of the results along an axis, beside the arms that lack it."""
    axis, first, sentences = same[0].axis, same[0].groups[0].first, _sentences(same[0])
    arms = {one.groups[0].first[ARM] for one in same}
    beside = [one for one in series if one.axis == ARM != axis and _sentences(one) == sentences]
    references = [group for one in beside for group in one.groups if group.first[ARM] not in arms]
    name = file_name(["by", axis.rpartition(".")[2], *sentences])
    caption = (
        f"Validation {first['metric']} after the last epoch{' on ' if sentences else ''}{', '.join(sentences)}. Small "
        "marks are runs; large marks their mean with the t-based 95% interval of the mean."
    )
    chosen = " Of each arm that has axes, the point with the best mean." if axis == ARM else ""
    return name, (along_axis(same, references), caption + chosen)


def _sentences(one: Series) -> tuple[str, ...]:
    first = one.groups[0].first
    return tuple(first[key] for key in SENTENCES if key in first)


def _curves(folder: Path, series: Series) -> dict[str, Curve]:
    curves = {}
    for name in (row["trial"] for group in series.groups for row in group.rows):
        path = folder / "trials" / name / "metrics.json"
        if path.is_file():
            content = parse_json(path.read_bytes(), "report", str(path))
            require_json(content, Metrics, "report", f"{path}: ", unknown="ignore")
            curves[name] = content["loss_curve"]
    return curves


def _save(figure: Figure, path: Path) -> str:
    """Write PATH.png and PATH.svg; the PNG as a page embeds it."""
    import matplotlib

    for suffix in ("png", "svg"):
        # no date and no random ids: the same study gives the same files
        with matplotlib.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
            save = partial(figure.savefig, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
            write_whole(path.with_name(f"{path.name}.{suffix}"), save)
    return base64.b64encode(path.with_name(f"{path.name}.png").read_bytes()).decode()


def _clean(value: float) -> float | None:
    return None if math.isnan(value) else value
