"""Section 7 of the paper (Hu et al., 2021): which directions adapters learn, and how they relate to W0's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor


def input_directions(a: Tensor) -> Tensor:
    """The right singular vectors of A (r, in), strongest first, as rows: (r, in)."""
    _, _, vh = torch.linalg.svd(a.double(), full_matrices=False)
    return cast(Tensor, vh)


def output_directions(b: Tensor) -> Tensor:
    """The left singular vectors of B (out, r), strongest first, as rows: (r, out)."""
    u, _, _ = torch.linalg.svd(b.double(), full_matrices=False)
    return cast(Tensor, u.T)


def subspace_similarity(u: Tensor, v: Tensor) -> Tensor:
    r"""How far the first i directions of `u` lie in the space of the first j of `v` (Section 7.2, Equation 4).

    .. math:: \phi(i, j) = \frac{\lVert U_i V_j^T \rVert_F^2}{\min(i, j)} \in [0, 1]

    1 where the smaller space lies within the larger one, 0 where they are orthogonal, max(i, j) / d on average where
    one of them is drawn at random.

    Args:
        u: Orthonormal rows (r, d), strongest first, as `input_directions` and `output_directions` give them.
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
    return torch.stack([subspace_similarity(*map(input_directions, pair)) for pair in pairs]).mean(0)


@dataclass(frozen=True)
class Amplification:
    """How delta W relates to W0 (Section 7.3, Table 7)."""

    r: int
    """How many directions are looked at."""
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
    r"""How far delta W amplifies directions that W0 has already (Section 7.3, Table 7).

    .. math:: \lVert U^T W_0 V^T \rVert_F, \qquad U, V \text{ the first r left and right singular vectors of }
        \Delta W, W_0 \text{ or a random matrix}

    Args:
        weight: W0, (out, in).
        delta: delta W = (alpha / r) B A, (out, in).
        r: How many directions, at most the smaller side.
        seed: Draws the random matrix.
    """
    weight, delta = weight.double(), delta.double()
    random = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)).double()
    within = [_within(weight, directions, r) for directions in (delta, weight, random)]
    return Amplification(r, float(weight.norm()), float(delta.norm()), *within)


def _within(weight: Tensor, matrix: Tensor, r: int) -> float:
    """||U^T W V^T||_F for the first r singular directions of `matrix`."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return float((u[:, :r].T @ weight @ vh[:r].T).norm())
