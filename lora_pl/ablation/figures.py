"""The figures of a study's report, readable in grey and with any colour vision."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_pl.ablation.grid import RANK
from lora_pl.ablation.groups import ARM, Group, Series
from lora_pl.ablation.statistics import summarize
from lora_pl.ablation.table import unit_of, value_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lora_pl.ablation.record import Curve

# Okabe and Ito's colours, which differ in lightness too, each with a marker and a line style
STYLES = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))
REFERENCE_STYLES = (("#000000", "--"), ("#666666", ":"), ("#999999", "-."))
AXIS_LABELS = {ARM: "", RANK: "rank r", "model.learning_rate": "learning rate"}
SMOOTHING = 0.8
BASE_LAW = 36_864
"""LoRA parameters per rank on query and value of roberta-base's shape: 12 layers x 2 x (768 + 768)."""


def along_axis(series: Sequence[Series], references: Sequence[Group]) -> Figure:
    """The last epoch's metric along an axis: a dot per run, their mean with its 95% interval, references."""
    figure, axes = _figure()
    values = list(dict.fromkeys(group.first[one.axis] for one in series for group in one.groups))
    values = sorted(values, key=value_order) if series[0].axis != ARM else values
    for number, one in enumerate(series):
        _draw_series(axes, one, values, number, len(series))
    results = [100 * value for one in series for group in one.groups for value in group.results().values()]
    low, high = _limits(axes, [result for result in results if not math.isnan(result)] or [0.0])
    for style, group in zip(itertools.cycle(REFERENCE_STYLES), references, strict=False):
        _draw_reference(axes, group, style, low - (high - low), high + (high - low))
    axes.set_xticks(range(len(values)), [textwrap.fill(value, max(4, 80 // len(values))) for value in values])
    axes.set_xlim(-0.6, len(values) - 0.4)
    metric = series[0].groups[0].first["metric"]
    axes.set(
        xlabel=AXIS_LABELS.get(series[0].axis, series[0].axis),
        ylabel=f"validation {metric}, last epoch ({unit_of(metric)})",
    )
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    return figure


def parameters_by_rank(series: Sequence[Series]) -> Figure:
    """The trained parameters of LoRA at each rank, a line per series, with the law of roberta-base's shape."""
    figure, axes = _figure()
    drawn = [sorted((int(g.first[RANK]), int(g.first["trainable_lora"])) for g in one.groups) for one in series]
    points = sorted({point for own in drawn for point in own})
    ranks = sorted({rank for rank, _ in points})
    law = [BASE_LAW * rank for rank in ranks]
    axes.plot(
        ranks, law, color="#000000", linestyle="--", marker="x", label=f"{BASE_LAW:,} r (roberta-base, query and value)"
    )
    for (color, marker, line), one, own in zip(itertools.cycle(STYLES), series, drawn, strict=False):
        name, per_rank = one.name or "this encoder", {count / rank for rank, count in own}
        label = f"{per_rank.pop():,.0f} r ({name})" if len(per_rank) == 1 else name
        axes.plot(*zip(*own, strict=True), color=color, linestyle=line, marker=marker, label=label)
    largest = dict(points)  # of each rank, told above its line, the others below theirs
    for rank, count in points:
        place = (0, 6 if count == largest[rank] else -14)
        axes.annotate(f"{count:,}", (rank, count), place, textcoords="offset points", ha="center", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    axes.margins(0.12, 0.18)
    axes.set(xlabel="rank r", ylabel="LoRA parameters")
    _legend(axes)
    return figure


def loss_curves(series: Series, curves: Mapping[str, Curve]) -> Figure:
    """The smoothed training loss of one series: mean over runs at each rank; the band is lowest to highest."""
    import numpy as np

    figure, axes = _figure()
    for (color, _, line), group in zip(itertools.cycle(STYLES), series.groups, strict=False):
        runs = [curves[row["trial"]] for row in group.rows if curves.get(row["trial"])]
        if not runs:
            continue
        points = min(map(len, runs))
        steps = [step for step, _ in runs[0][:points]]
        losses = np.stack([[loss for _, loss in run[:points]] for run in runs])
        for step in range(1, points):  # the exponential moving average
            losses[:, step] = SMOOTHING * losses[:, step - 1] + (1 - SMOOTHING) * losses[:, step]
        axes.plot(steps, losses.mean(0), color=color, linestyle=line, linewidth=1.5, label=group.name)
        axes.fill_between(steps, losses.min(0), losses.max(0), color=color, alpha=0.12, linewidth=0)
    axes.set(xlabel="optimizer step", ylabel="training loss")
    _legend(axes)
    return figure


def similarity_maps(maps: Sequence[tuple[str, Any]], columns: int) -> Figure:
    """Titled heat maps of phi(i, j) on one scale; with numbers in the cells where there are few maps."""
    import matplotlib.figure

    rows = -(-len(maps) // columns)
    shape = [max(values.shape[side] for _, values in maps) for side in (0, 1)]
    height = 2.1 * shape[0] / shape[1] + 0.75
    figure = matplotlib.figure.Figure(figsize=(2.5 * columns + 0.8, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    top = max(0.1, math.ceil(10 * max(float(values.max()) for _, values in maps)) / 10)
    for axes, (title, values) in zip(grid.flat, maps, strict=False):
        image = axes.imshow(values, vmin=0, vmax=top, cmap="cividis", origin="lower")
        axes.set_title(title, fontsize=9)
        axes.set_xticks(range(values.shape[1]), [str(j + 1) for j in range(values.shape[1])], fontsize=7)
        axes.set_yticks(range(values.shape[0]), [str(i + 1) for i in range(values.shape[0])], fontsize=7)
        axes.set_xlabel("j", fontsize=8)
        axes.set_ylabel("i", fontsize=8)
        if max(shape) <= 8 and len(maps) <= 6:
            for i, j in itertools.product(*map(range, values.shape)):
                color = "white" if values[i, j] < 0.55 * top else "black"
                text = f"{values[i, j]:.2f}".removeprefix("0")
                axes.text(j, i, text, ha="center", va="center", fontsize=6, color=color)
    for axes in grid.flat[len(maps) :]:
        axes.set_visible(False)
    figure.colorbar(image, ax=grid, label="similarity", fraction=0.03)
    return figure


def _limits(axes: Axes, results: Sequence[float]) -> tuple[float, float]:
    """Cut the axis where the interval of a few seeds would dwarf their results; its least and largest value."""
    span = max(results) - min(results) or 1
    low, high = max(axes.dataLim.y0, min(results) - span), min(axes.dataLim.y1, max(results) + span)
    if (low, high) != (axes.dataLim.y0, axes.dataLim.y1):
        axes.set_ylim(low, high)
    return low, high


def _draw_series(axes: Axes, series: Series, values: list[str], number: int, count: int) -> None:
    color, marker, line = STYLES[number % len(STYLES)]
    shift = 0.22 * (number - (count - 1) / 2)
    centres, means, widths = [], [], []
    for group in series.groups:
        x = values.index(group.first[series.axis]) + shift
        results = [100 * value for value in group.results().values()]
        spread = [x - 0.26 + 0.03 * index for index in range(len(results))]  # equal results stay apart
        axes.plot(spread, results, linestyle="none", marker=marker, color=color, alpha=0.45, markersize=4)
        found = summarize(results)
        centres.append(x)
        means.append(found.mean)
        widths.append(found.half_width)
    axes.errorbar(
        centres, means, widths, color=color, linestyle=line if series.axis != ARM else "none", linewidth=1.2,
        marker=marker, markersize=7, capsize=5, markerfacecolor="white",
        label=f"{series.name + ': ' if series.name else ''}mean, 95% interval",
    )  # fmt: skip


def _draw_reference(axes: Axes, group: Group, style: tuple[str, str], low: float, high: float) -> None:
    """A line; or a note in the legend where the line would squeeze the axis."""
    color, line = style
    found = summarize([100 * value for value in group.results().values()])
    told = f"{group.name}: {found.mean:.2f}, mean of {found.n}"
    if low <= found.mean <= high:
        axes.axhline(found.mean, color=color, linestyle=line, linewidth=1.3, label=told)
    else:
        axes.plot([], [], color=color, linestyle=line, linewidth=1.3, label=f"{told} (off the scale)")


def _figure() -> tuple[Figure, Axes]:
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
