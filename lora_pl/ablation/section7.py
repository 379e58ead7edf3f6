"""Section 7 of the paper (Hu et al., 2021): which directions adapters learn, and how they relate to W0's."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from lora_pl.ablation.figures import similarity_maps
from lora_pl.ablation.grid import RANK
from lora_pl.ablation.groups import Group, Series
from lora_pl.errors import UserError
from lora_pl.lora import lora_layers
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.storage.checkpoint import read_checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Side = Literal["A", "B"]
Directions = Mapping[Any, Mapping[str, Tensor]]
"""`adapter_directions` by checkpoint."""


def directions(matrix: Tensor) -> Tensor:
    """The right singular vectors of A (r, in), or of B^T (r, out), strongest first, as rows."""
    _, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return cast(Tensor, vh)


def subspace_similarity(u: Tensor, v: Tensor) -> Tensor:
    r"""How far the first i directions of `u` lie in the space of the first j of `v` (Section 7.2, Equation 4).

    .. math:: \phi(i, j) = \frac{\lVert U_i V_j^T \rVert_F^2}{\min(i, j)} \in [0, 1]

    1 where the smaller space lies within the larger one, 0 where they are orthogonal, max(i, j) / d on average where
    one of them is random.

    Args:
        u: Orthonormal rows (r, d), strongest first, as `directions` gives them.
        v: The same of another adapter, (r', d).

    Returns:
        (r, r'): entry [i - 1, j - 1] is phi(i, j).
    """
    overlap = (u @ v.T).square().cumsum(0).cumsum(1)
    i, j = torch.arange(1, len(u) + 1)[:, None], torch.arange(1, len(v) + 1)[None, :]
    return overlap / torch.minimum(i, j)


def random_similarity(d: int, r: int, other_r: int, draws: int = 20, seed: int = 0) -> Tensor:
    """The mean of `subspace_similarity` of Gaussian matrices (r, d) and (r', d): what chance gives, (r, r')."""
    generator = torch.Generator().manual_seed(seed)
    pairs = [[torch.randn(rows, d, generator=generator).double() for rows in (r, other_r)] for _ in range(draws)]
    return torch.stack([subspace_similarity(*map(directions, pair)) for pair in pairs]).mean(0)


@dataclass(frozen=True)
class Amplification:
    """How delta W relates to W0 (Section 7.3, Table 7)."""

    weight_norm: float
    """||W0||_F."""
    delta_norm: float
    """||delta W||_F."""
    by_delta: float
    """||U^T W0 V^T||_F for the first r singular directions of delta W: what W0 has there."""
    by_weight: float
    """The same for W0's own first r directions."""
    by_random: float
    """The same for the directions of a random matrix."""

    @property
    def factor(self) -> float:
        """||delta W||_F / ||U^T W0 V^T||_F: how much delta W adds to what W0 has in delta W's directions."""
        return self.delta_norm / self.by_delta


def amplification(weight: Tensor, delta: Tensor, r: int, seed: int = 0) -> Amplification:
    r"""How far delta W amplifies directions that W0 already has (Section 7.3, Table 7).

    .. math:: \lVert U^T W_0 V^T \rVert_F, \qquad U, V \text{ the first r left and right singular vectors of }
        \Delta W, W_0 \text{ or a random matrix}

    Args:
        weight: W0, (out, in).
        delta: delta W = s B A, (out, in).
        r: How many directions, at most the smaller side.
        seed: Draws the random matrix.
    """
    weight, delta = weight.double(), delta.double()
    random = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)).double()
    parts = []
    for matrix in (delta, weight, random):
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        parts.append(float((u[:, :r].T @ weight @ vh[:r].T).norm()))
    return Amplification(float(weight.norm()), float(delta.norm()), *parts)


def adapter_directions(checkpoint: str | Path, side: Side = "A") -> dict[str, Tensor]:
    """`directions` of A, or of B^T, of every layer of a checkpoint: (r, d) by layer.

    Raises:
        UserError: `checkpoint.adapter`, the checkpoint holds no adapter.
    """
    suffix = f".lora_{side}"
    state: Mapping[str, Tensor] = read_checkpoint(checkpoint)["state_dict"]
    found = {
        key.removeprefix("encoder.").removesuffix(suffix): directions(tensor if side == "A" else tensor.T)
        for key, tensor in state.items()
        if key.endswith(suffix)
    }
    if not found:
        raise UserError("checkpoint.adapter", f"{checkpoint} holds no adapter; expected a checkpoint of method lora")
    return found


def layer_similarities(one: str | Path, other: str | Path, side: Side = "A") -> dict[str, Tensor]:
    """`subspace_similarity` of two checkpoints' adapters, (r, r') by layer; Section 7.2.

    Example:
        >>> found = layer_similarities("a/last.ckpt", "b/last.ckpt")  # doctest: +SKIP
        >>> torch.stack(list(found.values())).mean(0)  # doctest: +SKIP

    Raises:
        UserError: `checkpoint.adapter`, the checkpoints adapt different layers, or none.
    """
    return _similarities({path: adapter_directions(path, side) for path in (one, other)}, [(one, other)])[0]


@torch.no_grad()
def layer_amplifications(checkpoint: str | Path, r: int | None = None) -> dict[str, Amplification]:
    """`amplification` of every layer of a checkpoint, by default over as many directions as its rank; Section 7.3."""
    layers = lora_layers(LoRAClassifier.load_from_checkpoint(checkpoint, base_dtype="float32").encoder)
    return {
        name: amplification(layer.weight, layer.delta_weight(), r or layer.adapter.r) for name, layer in layers.items()
    }


def section7_figures(folder: Path, series: Series) -> dict[str, tuple[Figure, str]]:
    """Figures and captions of Section 7.2 for the two highest ranks of a series; none without their checkpoints.

    Where ranks differ by layer, a mean over layers is of the directions that all have. Ranks are compared across seeds:
    with one seed, A starts from the same random numbers in the first layer.
    """
    groups = [group for group in series.groups if len(_checkpoints(folder, group)) > 1]
    if len(groups) < 2:
        return {}
    small, large = groups[-2:]
    large_rank = int(large.first[RANK])
    ones, others = (_checkpoints(folder, group) for group in (small, large))
    next_seeds = list(zip(ones, [*others[1:], others[0]], strict=False))
    maps: list[tuple[str, Any]] = []
    sides: dict[Side, Directions] = {
        side: {path: adapter_directions(path, side) for path in [*ones, *others]} for side in ("A", "B")
    }
    for side, learned in sides.items():
        d = next(iter(learned[others[0]].values())).shape[1]
        maps += [
            (f"{side}: {small.name} and {large.name}", _mean(_similarities(learned, next_seeds))),
            (f"{side}: two seeds of {large.name}", _mean(_similarities(learned, itertools.pairwise(others)))),
            (f"{side}: random, d = {d}", random_similarity(d, large_rank, large_rank).numpy()),
        ]
    by_layer = _similarities(sides["A"], next_seeds)
    layers = [(_short(layer), _mean([{layer: found[layer]} for found in by_layer])) for layer in by_layer[0]]
    between = f"{small.name} (i) and {large.name} (j), each with the next seed's"
    return {
        "subspace_similarity": (
            similarity_maps(maps, columns=3),
            "Section 7.2: similarity of the spaces of the first i and the first j singular directions of A and of B, "
            f"averaged over layers and seeds: {between}; two seeds of {large.name}; and Gaussian random matrices.",
        ),
        "subspace_similarity_by_layer": (
            similarity_maps(layers, columns=4),
            f"Section 7.2 layer by layer, for A: {between}; mean over seeds.",
        ),
    }


def amplification_rows(folder: Path, series: Series) -> list[list[str]]:
    """Section 7.3's Table 7 for the first seed of the two highest ranks, by kind of module, means over layers.

    Raises:
        UserError: the base that the checkpoints were trained on is missing.
    """
    rows = []
    for group in series.groups[-2:]:
        for path in _checkpoints(folder, group)[:1]:
            found = layer_amplifications(path)
            for kind in dict.fromkeys(name.rpartition(".")[2] for name in found):
                own = [[*vars(one).values(), one.factor] for name, one in found.items() if name.endswith(f".{kind}")]
                rows.append([f"{group.name}, {kind}", *(f"{mean(column):.2f}" for column in zip(*own, strict=True))])
    return rows


def _checkpoints(folder: Path, group: Group) -> list[Path]:
    """The last checkpoint of each seed that has one, of its first fold."""
    found: dict[int, Path] = {}
    for row in group.rows:
        path = folder / "trials" / row["trial"] / "last.ckpt"
        if path.is_file():
            found.setdefault(row["seed"], path)
    return list(found.values())


def _similarities(learned: Directions, pairs: Iterable[tuple[Any, Any]]) -> list[dict[str, Tensor]]:
    """`subspace_similarity` by layer of each pair of checkpoints whose directions have been read."""
    found = []
    for one, other in pairs:
        first, second = learned[one], learned[other]
        if differs := sorted(first.keys() ^ second.keys()):
            raise UserError("checkpoint.adapter", f"{one} and {other} adapt different layers: {', '.join(differs[:3])}")
        found.append({layer: subspace_similarity(first[layer], second[layer]) for layer in first})
    return found


def _mean(found: Sequence[dict[str, Tensor]]) -> Any:
    """Over layers and pairs; where ranks differ by layer, of the directions that all have."""
    maps = [tensor for one in found for tensor in one.values()]
    r, other_r = (min(tensor.shape[side] for tensor in maps) for side in (0, 1))
    return torch.stack([tensor[:r, :other_r] for tensor in maps]).mean(0).numpy()


def _short(layer: str) -> str:
    """`encoder.encoder.layer.3.attention.self.query` -> `3 query`."""
    *path, name = layer.split(".")
    return " ".join([*(part for part in path if part.isdigit()), name])
