"""The paper's Section 7 on matrices whose answer is known."""

import pytest
import torch

from lora_pl.ablation.grid import RANK
from lora_pl.ablation.groups import Group, Series
from lora_pl.ablation.section7 import (
    amplification,
    directions,
    layer_amplifications,
    layer_similarities,
    random_similarity,
    section7_figures,
    subspace_similarity,
)
from lora_pl.errors import UserError
from lora_pl.storage.checkpoint import read_checkpoint


def test_identical_subspaces_are_one_and_orthogonal_ones_zero():
    a = torch.randn(4, 20)
    same = subspace_similarity(directions(a), directions(3 * a))
    torch.testing.assert_close(same.diagonal(), torch.ones(4, dtype=torch.float64))
    assert same[0, 3] == pytest.approx(1)  # the first direction lies within the first four
    one, other = torch.eye(20)[:4], torch.eye(20)[4:10]
    assert subspace_similarity(one, other).abs().max() < 1e-12


def test_a_half_shared_subspace_is_a_half():
    identity = torch.eye(10, dtype=torch.float64)
    found = subspace_similarity(identity[[0, 1]], identity[[0, 5, 1]])
    assert found.tolist() == [[1, 1, 1], [1, 0.5, 1]]


def test_what_is_random_is_similar_by_chance_alone():
    """phi(i, j) is max(i, j) / d on average."""
    found = random_similarity(200, 4, 8, draws=200)
    i, j = torch.arange(1, 5)[:, None], torch.arange(1, 9)[None]
    torch.testing.assert_close(found, torch.maximum(i, j) / 200.0, check_dtype=False, rtol=0.25, atol=0)


def test_directions_do_not_depend_on_how_the_update_is_written():
    """B A = (B M) (M^-1 A): A's row space and B's column space stay."""
    a, b = torch.randn(3, 20, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64)
    m = torch.randn(3, 3, dtype=torch.float64)
    for one, other in ((a, m.inverse() @ a), (b.T, (b @ m).T)):
        assert subspace_similarity(directions(one), directions(other))[2, 2] == pytest.approx(1)


def test_amplification_of_known_matrices():
    """W0 = diag(5, 4, 3, 2, 1); an update of norm 10 along its third direction."""
    weight = torch.diag(torch.tensor([5.0, 4, 3, 2, 1]))
    delta = torch.zeros(5, 5)
    delta[2, 2] = 10
    found = amplification(weight, delta, 1)
    assert (found.by_delta, found.by_weight, found.delta_norm) == pytest.approx((3, 5, 10))
    assert found.factor == pytest.approx(10 / 3)
    assert found.by_random < found.by_weight
    assert amplification(weight, weight, 5).by_random == pytest.approx(found.weight_norm)  # a full basis sees all


def test_figures_of_ranks_that_differ_by_layer(checkpoint, tmp_path):
    """Means are of the directions that all layers have."""
    stored = read_checkpoint(checkpoint)
    of_value = {key: tensor for key, tensor in stored["state_dict"].items() if ".value.lora_" in key}
    groups = []
    for r in (1, 2):
        cut = {key: tensor[:r] if key.endswith("A") else tensor[:, :r] for key, tensor in of_value.items()}
        names = [f"r{r}-s{seed}" for seed in (0, 1)]
        for name in names:
            path = tmp_path / "trials" / name / "last.ckpt"
            path.parent.mkdir(parents=True)
            torch.save({**stored, "state_dict": {**stored["state_dict"], **cut}}, path)
        rows = tuple({"trial": name, "seed": seed, RANK: str(r)} for seed, name in enumerate(names))
        groups.append(Group(f"r = {r}", rows))
    figures = section7_figures(tmp_path, Series(RANK, "", tuple(groups)))
    means, by_layer = (
        [axes.images[0].get_array().shape for axes in figure.axes if axes.images] for figure, _ in figures.values()
    )
    assert means[:2] == [(1, 2), (2, 2)]
    assert set(by_layer) == {(1, 2), (4, 4)}


def test_checkpoints_are_compared_layer_by_layer(checkpoint, tmp_path):
    for side in ("A", "B"):
        same = layer_similarities(checkpoint, checkpoint, side)
        assert len(same) == 4
        assert all(matrix.shape == (4, 4) and matrix[3, 3] == pytest.approx(1) for matrix in same.values())
    found = layer_amplifications(checkpoint)
    assert found.keys() == same.keys()
    assert all(one.delta_norm > 0 and one.by_weight > one.by_delta for one in found.values())
    stored = read_checkpoint(checkpoint)
    kept = {key: tensor for key, tensor in stored["state_dict"].items() if "lora" not in key}
    torch.save({**stored, "state_dict": kept}, tmp_path / "head.ckpt")
    with pytest.raises(UserError, match=r"^checkpoint\.adapter: "):
        layer_similarities(checkpoint, tmp_path / "head.ckpt")
