"""The paper's Section 7 for the adapters of a study."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from lora_pl.ablation.groups import Group, Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from lora_pl.ablation.adapters import Side
    from lora_pl.ablation.subspace import Amplification


def section7_figures(folder: Path, series: Series) -> dict[str, tuple[Figure, str]]:
    """Figures and captions of Section 7.2 for the two highest ranks of a series; none without their checkpoints.

    Ranks are compared across seeds: with one seed their A start from the same random numbers in the first layer.
    """
    from lora_pl.ablation.figures import similarity_maps

    groups = [group for group in series.groups if len(checkpoints(folder, group)) > 1]
    if len(groups) < 2:
        return {}
    small, large = groups[-2], groups[-1]
    between = f"{small.name} (i) and {large.name} (j), each with the next seed's"
    return {
        "subspace_similarity": (
            similarity_maps(_averaged(folder, small, large), columns=3),
            "Section 7.2: similarity of the spaces of the first i and the first j singular directions of A and of B, "
            f"averaged over layers and seeds: {between}; two seeds of {large.name}; and Gaussian random matrices.",
        ),
        "subspace_similarity_by_layer": (
            similarity_maps(_layers(folder, small, large), columns=4),
            f"Section 7.2 layer by layer, for A: {between}; mean over seeds.",
        ),
    }


@dataclass(frozen=True)
class AmplificationRow:
    """Table 7 for one rank and one kind of module, means over layers."""

    name: str
    weight_norm: float
    delta_norm: float
    by_delta: float
    by_weight: float
    by_random: float
    factor: float


def amplification_rows(folder: Path, series: Series) -> list[AmplificationRow]:
    """Section 7.3's Table 7 for the first seed of the two highest ranks, by kind of module.

    Raises:
        UserError: the base that the checkpoints were trained on is not where they say.
    """
    from lora_pl.ablation.adapters import layer_amplifications

    rows = []
    for group in series.groups[-2:]:
        for path in list(checkpoints(folder, group).values())[:1]:
            found = layer_amplifications(path)
            for kind in dict.fromkeys(name.rpartition(".")[2] for name in found):
                own = [one for name, one in found.items() if name.endswith(f".{kind}")]
                rows.append(_row(f"{group.name}, {kind}", own))
    return rows


def _row(name: str, found: Sequence[Amplification]) -> AmplificationRow:
    names = ("weight_norm", "delta_norm", "by_delta", "by_weight", "by_random", "factor")
    return AmplificationRow(name, *(mean(getattr(one, key) for one in found) for key in names))


def checkpoints(folder: Path, group: Group) -> dict[int, Path]:
    """The last checkpoint of each seed that has one."""
    paths = {row["seed"]: folder / "trials" / row["trial"] / "last.ckpt" for row in group.rows}
    return {seed: path for seed, path in paths.items() if path.is_file()}


def _averaged(folder: Path, small: Group, large: Group) -> list[tuple[str, Any]]:
    from lora_pl.ablation.adapters import adapter_directions
    from lora_pl.ablation.subspace import random_similarity

    maps: list[tuple[str, Any]] = []
    sides: tuple[Side, ...] = ("A", "B")
    for side in sides:
        size = next(iter(adapter_directions(next(iter(checkpoints(folder, large).values())), side).values())).shape[1]
        maps += [
            (f"{side}: {small.name} and {large.name}", _mean(_between_ranks(folder, small, large, side))),
            (f"{side}: two seeds of {large.name}", _mean(_between_seeds(folder, large, side))),
            (f"{side}: random, d = {size}", random_similarity(size, large.rank, large.rank).numpy()),
        ]
    return maps


def _layers(folder: Path, small: Group, large: Group) -> list[tuple[str, Any]]:
    found = _between_ranks(folder, small, large, "A")
    return [(_short(layer), _mean([{layer: one[layer]} for one in found])) for layer in found[0]]


def _between_ranks(folder: Path, small: Group, large: Group, side: Side) -> list[dict[str, Tensor]]:
    from lora_pl.ablation.adapters import layer_similarities

    ones, others = (list(checkpoints(folder, group).values()) for group in (small, large))
    pairs = zip(ones, [*others[1:], others[0]], strict=False)
    return [layer_similarities(one, other, side) for one, other in pairs]


def _between_seeds(folder: Path, group: Group, side: Side) -> list[dict[str, Tensor]]:
    from lora_pl.ablation.adapters import layer_similarities

    pairs = itertools.pairwise(checkpoints(folder, group).values())
    return [layer_similarities(one, other, side) for one, other in pairs]


def _mean(found: Sequence[dict[str, Tensor]]) -> Any:
    import torch

    return torch.stack([tensor for one in found for tensor in one.values()]).mean(0).numpy()


def _short(layer: str) -> str:
    """`encoder.encoder.layer.3.attention.self.query` -> `3 query`."""
    numbers = [part for part in layer.split(".") if part.isdigit()]
    return " ".join([*numbers, layer.rpartition(".")[2]])
