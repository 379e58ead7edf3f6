import itertools

import numpy as np
import pytest
import torch

from lora_pl.encoder.packing import GROUP_COST, Packing, group_bounds


def test_positions_restart_and_lengths_cumulate():
    packing = Packing([3, 1, 2])
    assert packing.positions().tolist() == [[0, 1, 2, 0, 0, 1]]
    assert packing.positions(padding=1).tolist() == [[2, 3, 4, 2, 2, 3]]
    assert packing.starts.tolist() == [0, 3, 4]
    assert packing.cumulative_lengths.tolist() == [0, 3, 4, 6]
    assert packing.cumulative_lengths.dtype == torch.int32
    assert packing.longest == 3
    filled = Packing([3, 1], filler=5)  # longer than any sentence, and perhaps than the encoder's positions
    assert filled.positions().tolist() == [[0, 1, 2, 0, 0, 0, 0, 0, 0]]
    assert filled.positions(padding=1).tolist() == [[2, 3, 4, 2, 1, 1, 1, 1, 1]]
    padded = Packing([3, 3], filler=1, pads=[1, 5])
    assert padded.positions().tolist() == [[0, 1, 2, 0, 1, 2, 0]], "some count every token"
    assert padded.positions(padding=1).tolist() == [[2, 1, 3, 2, 3, 1, 1]]


@pytest.mark.parametrize("lengths", [[5], [4, 4, 4], [1, 9, 2, 40, 3, 3], [512, 2, 2]])
@pytest.mark.parametrize("heads", [1, 12])
def test_unpadding_undoes_padding(lengths, heads):
    grouping = Packing(lengths).grouping(heads)
    vectors = torch.arange(sum(lengths) * heads)
    padded = vectors.index_select(0, grouping.pad)
    assert torch.equal(padded.index_select(0, grouping.unpad), vectors)
    real = torch.ones(len(padded), dtype=torch.bool).index_fill(0, grouping.padding, False)
    assert torch.equal(padded[real].sort().values, vectors)
    assert len(padded) == sum(group.matrices * group.longest for group in grouping.groups)
    assert grouping.scores == sum(group.matrices * group.longest**2 for group in grouping.groups)


def test_no_head_attends_to_padding():
    (group,) = Packing([4, 4, 4]).grouping(2).groups
    assert not group.bias.any()
    (group,) = Packing([2, 4]).grouping(2, dtype=torch.bfloat16).groups
    assert group.bias.dtype == torch.bfloat16
    assert group.bias[:, 0].isneginf().tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2


def test_groups_cost_no_more_than_any_other_cut():
    lengths, heads = np.asarray([2, 3, 3, 20, 21, 60, 64]), 12

    def cost(bounds):
        return sum((b - a) * heads * lengths[b - 1] ** 2 + GROUP_COST for a, b in itertools.pairwise(bounds))

    cuts = (c for n in range(7) for c in itertools.combinations(range(1, 7), n))
    assert cost(group_bounds(lengths, heads)) == min(cost([0, *cut, 7]) for cut in cuts)


def test_rows_with_filler_share_the_shapes_of_their_groups():
    draw = np.random.default_rng(0)
    rows = [draw.integers(3, 50, 32).tolist() for _ in range(50)]
    alone, shared = (
        {(group.sentences, group.longest) for row in rows for group in Packing(row, filler=filler).grouping(12).groups}
        for filler in (0, 5)
    )
    assert len(shared) < len(alone) / 2


def test_a_window_masks_what_is_farther_within_each_sentence():
    packing = Packing([2, 5])
    (group,) = packing.grouping(2, window=2).groups
    attends = group.bias[::2] == 0
    assert torch.equal(group.bias[::2], group.bias[1::2])
    near = (torch.arange(5)[:, None] - torch.arange(5)).abs() < 2
    assert torch.equal(attends[1], near)
    assert torch.equal(attends[0, :2], near[:2] & (torch.arange(5) < 2))
    assert attends.any(-1).all(), "a row that attends to nothing gives NaN"
    assert packing.grouping(2, window=5) is packing.grouping(2)
    (group,) = Packing([5, 5]).grouping(2, window=2).groups
    assert group.bias.shape == (1, 5, 5)
