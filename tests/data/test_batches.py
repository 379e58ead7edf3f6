from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from lora_pl.data.batches import TokenDataset, common_length, make_batch, split_by_tokens
from lora_pl.data.samplers import ExactBatches, RandomBatches, SummedSeedBatches
from lora_pl.data.tokens import Tokens
from lora_pl.errors import UserError


def make_tokens(lengths: list[int], second: list[int] | None = None) -> Tokens:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    labels = np.arange(len(lengths), dtype=np.float32)
    types = np.asarray(second or [0] * len(lengths), np.int32)
    return Tokens(np.arange(offsets[-1], dtype=np.int32) + 100, offsets, types, labels, 0)


def test_padding_keeps_every_token_in_its_place():
    batch = make_batch(make_tokens([2, 4, 1], second=[0, 2, 0]), [1, 2], "padded", 7)
    assert batch.input_ids.tolist() == [[102, 103, 104, 105], [106, 7, 7, 7]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.token_type_ids.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert batch.labels.tolist() == [1, 2]
    assert batch.tokens == 5
    assert len(batch) == 2
    assert batch.input_ids.dtype == torch.int64
    assert batch.to("meta").labels.device.type == "meta"


@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_random_batches_draw_every_sentence_once_an_epoch_and_anew_each_epoch(count):
    data = TokenDataset(make_tokens([3] * count), "packed", 0)
    sampler = RandomBatches(data, 32, seed=5)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == -(-count // 32)
        assert all(len(batch) == 32 for batch in batches[:-1])
        epochs.append([index for batch in batches for index in batch])
        assert sorted(epochs[-1]) == list(range(count))
    assert count < 31 or epochs[0] != epochs[1]
    sampler.set_epoch(0)
    assert [index for batch in sampler for index in batch] == epochs[0]


def order(sampler: RandomBatches, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return [index for batch in sampler for index in batch]


def test_no_two_seeds_and_epochs_share_an_order():
    """Seed + epoch would: seed 1 would begin as seed 0 goes on."""
    data = TokenDataset(make_tokens([3] * 20), "packed", 0)
    orders = [tuple(order(RandomBatches(data, 4, seed), epoch)) for seed in range(40) for epoch in range(40)]
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("replicas", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", [RandomBatches, SummedSeedBatches])
def test_processes_share_an_order_out(replicas, kind):
    """The first sentences are repeated until the processes divide them."""
    data = TokenDataset(make_tokens([3] * 23), "packed", 0)
    whole = order(kind(data, 4, 5), 2)
    shares = [order(kind(data, 4, 5, replicas, rank), 2) for rank in range(replicas)]
    assert [index for turn in zip(*shares, strict=True) for index in turn] == whole + whole[: -23 % replicas]


@given(st.integers(0, 2**32 - 1), st.integers(0, 50), st.integers(1, 60))
def test_the_order_of_earlier_versions_is_that_of_distributed_sampler(seed, epoch, count):
    data = TokenDataset(make_tokens([3] * count), "packed", 0)
    theirs = DistributedSampler(data, num_replicas=1, rank=0, seed=seed)
    theirs.set_epoch(epoch)
    assert order(SummedSeedBatches(data, 4, seed), epoch) == list(theirs)


def test_packing_puts_sentences_one_after_the_other():
    batch = make_batch(make_tokens([2, 4, 1], second=[0, 2, 0]), [1, 2], "packed", 7)
    assert batch.input_ids.tolist() == [[102, 103, 104, 105, 106]]
    assert batch.token_type_ids.tolist() == [[0, 0, 1, 1, 0]]
    assert batch.attention_mask is None
    assert batch.lengths == (4, 1)
    assert batch.labels.tolist() == [1, 2]
    assert (len(batch), batch.tokens) == (2, 5)
    assert batch.pads == ()
    assert make_batch(make_tokens([2, 4, 1]), [1, 2], "packed", 104).pads == (2,)


@given(st.integers(1, 100_000))
def test_a_common_length_adds_a_sixteenth_at_most(tokens):
    assert tokens <= common_length(tokens) <= tokens * 17 / 16
    assert common_length(common_length(tokens)) == common_length(tokens)


def test_there_are_few_common_lengths():
    assert len({common_length(tokens) for tokens in range(257, 513)}) == 16


def test_filler_is_no_sentence():
    tokens = make_tokens([40, 5], second=[0, 2])
    batch = TokenDataset(tokens, "packed", 7)[[1, 0]]
    assert batch.input_ids.shape == batch.token_type_ids.shape == (1, 46)
    assert batch.input_ids[0, 45:].tolist() == [7]
    assert (batch.lengths, batch.segments, batch.tokens, len(batch)) == ((5, 40), (5, 40, 1), 45, 2)
    assert torch.equal(batch.padded(7).input_ids, make_batch(tokens, [1, 0], "padded", 7).input_ids)
    assert torch.equal(batch.filled(7).input_ids, batch.input_ids)
    assert TokenDataset(tokens, "packed", 7)[[1]].segments == (5,)
    assert TokenDataset(tokens, "packed", 7, fills=False)[[1, 0]].segments == (5, 40)
    assert TokenDataset(tokens, "padded", 7)[[1, 0]].input_ids.shape == (2, 40)


@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_splits_hold_the_budget_and_waste_none_of_it(batching):
    lengths = np.sort(np.random.default_rng(1).integers(2, 30, 500))
    bounds = split_by_tokens(lengths, 100, batching)
    assert bounds[0] == 0
    assert bounds[-1] == len(lengths)

    def cost(part):
        return part.sum() if batching == "packed" else len(part) * part[-1]

    for start, end in pairwise(bounds):
        assert cost(lengths[start:end]) <= 100
        assert end == len(lengths) or cost(lengths[start : end + 1]) > 100


def test_a_budget_below_a_sentence():
    with pytest.raises(UserError, match="^data.eval_batch_tokens: "):
        split_by_tokens(np.asarray([3, 9]), 8, "packed")


@pytest.mark.parametrize("count", [3, 64, 65, 127, 872])
@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("budget", [8, 300])
@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_exact_batches_cover_a_split_once_over_all_processes(count, replicas, budget, batching):
    tokens = make_tokens(np.random.default_rng(0).integers(1, 9, count).tolist())
    data = TokenDataset(tokens, batching, 0)
    shares = [list(ExactBatches(data, budget, replicas, rank)) for rank in range(replicas)]
    assert sorted(index for share in shares for batch in share for index in batch) == list(range(count))
    assert len({len(share) for share in shares}) == 1, "a process would wait for ever"
    assert all(batch for share in shares for batch in share)
    if count > replicas * 2:
        assert max(tokens.lengths[batch].sum() for share in shares for batch in share) <= budget


def test_too_few_sentences_for_the_processes():
    with pytest.raises(UserError, match="^trainer.devices: "):
        ExactBatches(TokenDataset(make_tokens([3]), "packed", 0), 8, replicas=2)
