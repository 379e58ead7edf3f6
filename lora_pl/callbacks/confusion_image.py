"""A confusion matrix as a picture."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lora_pl.model.class_scores import ConfusionScores
from lora_pl.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_WRITTEN = 20
"""Classes up to which the cells have numbers."""
LONGEST = 24
"""Characters of a class's name."""
DPI = 120
Pixels = NDArray[np.uint8]


def confusion_image(scores: ConfusionScores, labels: Sequence[str], title: str) -> Pixels:
    """(height, width, 4): a row per true class, shaded by its shares; counts and shares in the cells."""
    import matplotlib.figure
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    names = [_short(printable(name)) for name in labels]
    written = len(names) <= MOST_WRITTEN
    side = max(2.4, len(names) * (0.52 if written else 0.22)) + 0.075 * max(map(len, names))
    figure = matplotlib.figure.Figure(figsize=(side + 0.6, side + 0.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    counts = scores.confusion.numpy()
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    told: dict[str, Any] = {"labels": names, "fontsize": 8 if written else 7, "parse_math": False}
    axes.set_xticks(range(len(names)), **told, **(turned if max(map(len, names)) > 5 else {}))
    axes.set_yticks(range(len(names)), **told)
    axes.set(xlabel="predicted", ylabel="true")
    figure.suptitle(title, fontsize=8)
    if written:
        _write(axes, counts, shares)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a script that the font lacks
        canvas.draw()
    return np.array(canvas.buffer_rgba())


def _write(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    """The number of each cell that has one, with its share of the row."""
    for true, predicted in itertools.product(range(len(counts)), repeat=2):
        if count := counts[true, predicted]:
            share = shares[true, predicted]
            color = "white" if share > 0.55 else "black"
            axes.text(predicted, true, f"{count:,}\n{share:.0%}", ha="center", va="center", fontsize=7, color=color)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
