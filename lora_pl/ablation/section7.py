"""The paper's Section 7 for the adapters of a study, as figures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_pl.ablation.groups import Group, Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from lora_pl.ablation.adapters import Side


def section7_figures(folder: Path, series: Series) -> dict[str, tuple[Figure, str]]:
    """Figures and captions of Section 7.2 for a series whose checkpoints are there; none where they are not."""
    from lora_pl.ablation.figures import similarity_maps

    groups = [group for group in series.groups if _checkpoints(folder, group)]
    if len(groups) < 2:
        return {}
    small, large = groups[-2], groups[-1]
    seeds = len(_common(folder, small, large))
    found = {
        "subspace_similarity": (
            similarity_maps(_averaged(folder, small, large)),
            "Section 7.2: similarity of the first i and the first j singular directions, averaged over layers. "
            f"Between {small.name} and {large.name} of the same seed ({seeds} seeds), between two seeds of "
            f"{large.name}, and for random matrices.",
        )
    }
    layers = _layers(folder, small, large)
    if layers:
        found["subspace_similarity_by_layer"] = (
            similarity_maps(layers),
            f"Section 7.2 layer by layer: A of {small.name} (i) and {large.name} (j) of the same seed, mean of seeds.",
        )
    return found


def _averaged(folder: Path, small: Group, large: Group) -> list[tuple[str, Any]]:
    from lora_pl.ablation.adapters import adapter_directions
    from lora_pl.ablation.subspace import random_similarity

    maps: list[tuple[str, Any]] = []
    sides: tuple[Side, ...] = ("A", "B")
    for side in sides:
        maps.append((f"{side}: {small.name}, {large.name}", _mean(_between_ranks(folder, small, large, side))))
        others = _between_seeds(folder, large, side)
        if others:
            maps.append((f"{side}: two seeds, {large.name}", _mean(others)))
        first = next(iter(adapter_directions(next(iter(_checkpoints(folder, large).values())), side).values()))
        maps.append((f"{side}: random", random_similarity(first.shape[1], small.rank, large.rank).numpy()))
    return maps


def _layers(folder: Path, small: Group, large: Group) -> list[tuple[str, Any]]:
    found = _between_ranks(folder, small, large, "A")
    return (
        [(_short(layer), _mean([one[layer] for one in found], of_layers=False)) for layer in found[0]] if found else []
    )


def _between_ranks(folder: Path, small: Group, large: Group, side: Side) -> list[dict[str, Tensor]]:
    from lora_pl.ablation.adapters import layer_similarities

    return [layer_similarities(*pair, side) for pair in _common(folder, small, large)]


def _between_seeds(folder: Path, group: Group, side: Side) -> list[dict[str, Tensor]]:
    from lora_pl.ablation.adapters import layer_similarities

    paths = list(_checkpoints(folder, group).values())
    return [layer_similarities(one, other, side) for one, other in itertools.pairwise(paths)]


def _common(folder: Path, small: Group, large: Group) -> list[tuple[Path, Path]]:
    ones, others = _checkpoints(folder, small), _checkpoints(folder, large)
    return [(ones[seed], others[seed]) for seed in ones if seed in others]


def _checkpoints(folder: Path, group: Group) -> dict[int, Path]:
    paths = {row["seed"]: folder / "trials" / row["trial"] / "last.ckpt" for row in group.rows}
    return {seed: path for seed, path in paths.items() if path.is_file()}


def _mean(found: Sequence[Any], of_layers: bool = True) -> Any:
    import torch

    tensors = [tensor for one in found for tensor in one.values()] if of_layers else list(found)
    return torch.stack(tensors).mean(0).numpy()


def _short(layer: str) -> str:
    """`encoder.encoder.layer.3.attention.self.query` -> `3 query`."""
    numbers = [part for part in layer.split(".") if part.isdigit()]
    return " ".join([*numbers, layer.rpartition(".")[2]])
