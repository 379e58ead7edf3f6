"""The report of a study: figures, a summary, and one HTML page with all of it."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from lora_pl.ablation.figures import accuracy_by_rank, loss_curves, parameters_by_rank
from lora_pl.ablation.groups import Group, Series, references_of, series_of
from lora_pl.ablation.page import PUBLISHED, make_page
from lora_pl.ablation.section7 import section7_figures
from lora_pl.ablation.statistics import summarize
from lora_pl.ablation.study import stored_settings
from lora_pl.ablation.table import ResultTable
from lora_pl.errors import UserError
from lora_pl.storage.schema import parse_json, require_json
from lora_pl.storage.write_whole import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lora_pl.ablation.record import Curve


class Metrics(TypedDict):
    """What the report reads of a trial's `metrics.json`."""

    loss_curve: list[tuple[int, float]]


SHARED = ("alpha", "alpha_rule", "targets", "learning_rate", "trainable_lora", "trainable_head", "trainable", "metric")
"""What all rows of a group have in common."""


def write_report(folder: Path) -> Path:
    """Write `report.html`, `summary.json` and `figures/*.{png,svg}` of the study in `folder`; the page's path.

    Raises:
        UserError: `report`, no trial in the folder is finished; `report.extra`, matplotlib or scipy is missing.
    """
    missing = [name for name in ("matplotlib", "scipy") if find_spec(name) is None]
    if missing:
        raise UserError(
            "report.extra",
            f"{' and '.join(missing)} is not installed; pip install 'lora_pl[ablation]', then "
            f"lora_pl ablate report {folder}",
        )
    table = ResultTable(folder)
    series, references = series_of(table.rows), references_of(table.rows)
    if not series and not references:
        raise UserError("report", f"{folder} holds no finished trial; expected the folder of `lora_pl ablate`")
    settings = stored_settings(folder) or {}
    drawn = _figures(folder, series, references)
    figures = [
        {"png": _save(figure, folder / "figures" / name), "caption": caption}
        for name, (figure, caption) in drawn.items()
    ]
    summary = _summary(series, references, settings)
    text = json.dumps(summary, indent=2)
    write_whole(folder / "summary.json", lambda beside: beside.write_text(text, encoding="utf-8"))
    page = make_page(table, series, summary, settings, figures)
    path = folder / "report.html"
    write_whole(path, lambda beside: beside.write_text(page, encoding="utf-8"))
    return path


def _summary(series: Sequence[Series], references: Sequence[Group], settings: dict[str, Any]) -> dict[str, Any]:
    """`summary.json`: a row per group with mean and deviation, and the published rows."""
    shared = {"encoder": settings.get("model.encoder"), "task": settings.get("data.task") or "sst2"}
    shared["train_sentences"] = settings.get("data.train_sentences")
    groups = [(", ".join(filter(None, (group.name, one.name))), group) for one in series for group in one.groups]
    rows = []
    for name, group in [*groups, *((group.name, group) for group in references)]:
        best, last = (summarize(list(group.results(which).values())) for which in ("best", "last"))
        rows.append(
            {
                **shared,
                "name": name,
                "method": group.method,
                "r": group.rank,
                **{key: group.first[key] for key in SHARED},
                "epochs": group.first["epoch"],
                "seeds": last.n,
                "best": _clean(best.mean),
                "best_std": _clean(best.std),
                "last": _clean(last.mean),
                "last_std": _clean(last.std),
                "source": "measured",
            }
        )
    return {"measured": rows, "published": list(PUBLISHED)}


def _figures(folder: Path, series: list[Series], references: list[Group]) -> dict[str, tuple[Figure, str]]:
    metric = (series[0].groups[0] if series else references[0]).first["metric"]
    found = {
        "accuracy_by_rank": (
            accuracy_by_rank(series, references, metric),
            f"Validation {metric} after the last epoch. Small marks are runs, one per seed; large marks their mean "
            "with the t-based 95% interval of the mean.",
        )
    }
    if series:
        found["parameters_by_rank"] = (
            parameters_by_rank(series),
            "Trained parameters of LoRA by rank (both axes logarithmic): r (in + out) per adapted layer.",
        )
        found["loss_curves"] = (
            loss_curves(series[0], _curves(folder, series[0])),
            f"Training loss{f' ({series[0].name})' if series[0].name else ''}, exponentially smoothed: mean over seeds "
            "and, shaded, lowest to highest.",
        )
        found |= section7_figures(folder, series[0])
    return found


def _curves(folder: Path, series: Series) -> dict[str, Curve]:
    names = [row["trial"] for group in series.groups for row in group.rows]
    paths = {name: folder / "trials" / name / "metrics.json" for name in names}
    return {name: _curve(path) for name, path in paths.items() if path.is_file()}


def _curve(path: Path) -> Curve:
    content = parse_json(path.read_bytes(), "report", str(path))
    require_json(content, Metrics, "report", f"{path}: ", unknown="ignore")
    curve: Curve = content["loss_curve"]
    return curve


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


def _clean(value: float) -> float | None:
    return None if math.isnan(value) else value
