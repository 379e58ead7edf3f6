"""Batches of tokenized sentences and the order in which they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from lora_pl.data.tokens import Tokens
from lora_pl.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Sentences padded to the longest of them."""

    input_ids: Tensor
    """(batch, length), int64"""
    attention_mask: Tensor
    """(batch, length), int64: 1 on tokens, 0 on padding"""
    token_type_ids: Tensor
    """(batch, length), int64: 1 on the second text of a pair where the tokenizer tells them apart"""
    labels: Tensor
    """(batch,), fp32: class ids or scores; empty where there are none"""
    tokens: int
    """Real tokens in the batch."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on `device`."""
        tensors = (self.input_ids, self.attention_mask, self.token_type_ids, self.labels)
        ids, mask, types, labels = (tensor.to(device, non_blocking=non_blocking) for tensor in tensors)
        return Batch(ids, mask, types, labels, self.tokens)


def pad(tokens: Tokens, indices: Sequence[int], pad_token_id: int) -> Batch:
    """The sentences `indices`, padded to the longest of them."""
    chosen = np.asarray(indices, dtype=np.int64)
    lengths = tokens.lengths[chosen][:, None]  # (batch, 1)
    column = np.arange(lengths.max())[None, :]  # (1, length)
    real = column < lengths  # (batch, length)
    ids = tokens.ids[np.where(real, tokens.offsets[chosen][:, None] + column, 0)]
    second = real & (column >= lengths - tokens.second[chosen][:, None])
    return Batch(
        torch.from_numpy(np.where(real, ids, pad_token_id).astype(np.int64)),
        torch.from_numpy(real.astype(np.int64)),
        torch.from_numpy(second.astype(np.int64)),
        torch.from_numpy(tokens.labels[chosen] if len(tokens.labels) else tokens.labels),
        int(lengths.sum()),
    )


class TokenDataset(Dataset[Batch]):
    """Tokenized sentences, asked for by lists of indices: `dataset[[3, 1]]` is a batch of two."""

    def __init__(self, tokens: Tokens, pad_token_id: int) -> None:
        self.tokens = tokens
        self.pad_token_id = pad_token_id

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, indices: Sequence[int] | int) -> Batch:
        # a single one where Lightning puts a sampler of its own (--trainer.overfit_batches)
        return pad(self.tokens, [indices] if isinstance(indices, int) else indices, self.pad_token_id)


class RandomBatches(DistributedSampler[list[int]]):
    """Random batches of `batch_size` sentences, drawn anew each epoch from `seed` and the epoch's number.

    Over several processes each draws its share of the same shuffle; the last batch of an epoch may be smaller.
    """

    def __init__(self, dataset: TokenDataset, batch_size: int, seed: int, replicas: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas=replicas, rank=rank, shuffle=True, seed=seed)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        indices: list[int] = list(super().__iter__())  # type: ignore[arg-type]
        for start in range(0, len(indices), self.batch_size):
            yield indices[start : start + self.batch_size]


class ExactBatches(DistributedSampler[list[int]]):
    """Every sentence once, in batches of like length, at most `batch_size` each.

    Over several processes no sentence is repeated (DistributedSampler repeats some, which would falsify a metric),
    and every process gets the same number of batches (else DDP would wait for ever).
    """

    def __init__(self, dataset: TokenDataset, batch_size: int, replicas: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas=replicas, rank=rank, shuffle=False)
        if len(dataset) < replicas:
            raise UserError(f"{len(dataset)} sentences are too few for {replicas} processes: take fewer devices")
        share = -(-len(dataset) // replicas)
        # no process may be left with an empty batch, so one sentence more than batch_size where shares are uneven
        count = min(-(-share // batch_size), len(dataset) // replicas)
        by_length = np.argsort(dataset.tokens.lengths, kind="stable")[rank::replicas]
        # in random order, so that the first batches stand for all (--trainer.limit_val_batches)
        order = np.random.default_rng(0).permutation(count)
        parts = np.array_split(by_length, count)
        self.batches = [parts[index].tolist() for index in order]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
