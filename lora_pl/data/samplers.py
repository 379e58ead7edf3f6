"""The order of batches: at random for training, every sentence once for evaluation."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler, SequentialSampler

from lora_pl.data.batches import TokenDataset, indices_of_like_length
from lora_pl.errors import UserError


class RandomBatches(DistributedSampler[list[int]]):
    """Random batches of `batch_size` sentences, shuffled each epoch by `seed` and the epoch's number alone.

    Each process takes its share of the same shuffle; the last batch of an epoch may be smaller. A resumed run starts
    at `start`: an epoch, and how many of its batches to skip.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        batch_size: int,
        seed: int,
        replicas: int = 1,
        rank: int = 0,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(dataset, num_replicas=replicas, rank=rank, shuffle=True, seed=seed)
        self.batch_size = batch_size
        self.start = start
        self.set_epoch(start[0])

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # the first sentences once more where the processes do not divide them
        own = np.resize(self.shuffled(), self.total_size)[self.rank :: self.num_replicas].tolist()
        first, done = self.start
        skipped = done * self.batch_size if self.epoch == first else 0
        for start in range(skipped, len(own), self.batch_size):
            yield own[start : start + self.batch_size]

    def shuffled(self) -> NDArray[np.int64]:
        """The epoch's order, (sentences,); a hash of seed and epoch, as seed + epoch would repeat orders."""
        digest = hashlib.sha256(f"{self.seed} {self.epoch}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest)).permutation(len(self.dataset))  # type: ignore[arg-type]


class SummedSeedBatches(RandomBatches):
    """The order of runs that version 0.2.0 or an earlier one began: DistributedSampler's, by seed + epoch."""

    def shuffled(self) -> NDArray[np.int64]:
        """The epoch's order, (sentences,)."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(len(self.dataset), generator=generator).numpy()  # type: ignore[arg-type]


class SameBatches(RandomBatches, SequentialSampler):  # type: ignore[misc]  # of lists
    """The first epoch's batches in every epoch, for overfit_batches: Lightning replaces all but a SequentialSampler."""

    def set_epoch(self, epoch: int) -> None:
        """Stay in the first."""
        self.epoch = 0


class ExactBatches(DistributedSampler[list[int]], SequentialSampler):
    """Every sentence once, in batches of like length, of at most `budget` tokens each.

    No process repeats another's sentence (DistributedSampler does, which would bias metrics), and all processes get
    the same number of batches (or DDP would deadlock).

    Raises:
        UserError: `trainer.devices`: there are fewer sentences than processes.
    """

    def __init__(self, dataset: TokenDataset, budget: int, replicas: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas=replicas, rank=rank, shuffle=False)
        if len(dataset) < replicas:
            raise UserError(
                "trainer.devices", f"{len(dataset)} sentences are too few for {replicas} processes; take fewer devices"
            )
        lengths = dataset.tokens.lengths
        shares = [
            indices_of_like_length(lengths, budget, dataset.batching, slice(r, None, replicas)) for r in range(replicas)
        ]
        # as many as the process with most needs, unless another has fewer sentences than that
        count = min(max(map(len, shares)), len(dataset) // replicas)
        batches = _in_number(shares[rank], count)
        # in random order, so that the first ones are a fair sample (--trainer.limit_val_batches)
        self.batches = [batches[index] for index in np.random.default_rng(0).permutation(count)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        return iter(self.batches)


def _in_number(batches: list[list[int]], count: int) -> list[list[int]]:
    """The same sentences in `count` batches, by halving the largest or joining the last."""
    if len(batches) > count:
        return [*batches[: count - 1], list(itertools.chain(*batches[count - 1 :]))]
    batches = list(batches)
    while len(batches) < count:
        largest = batches.pop(max(range(len(batches)), key=lambda index: len(batches[index])))
        batches += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    return batches
