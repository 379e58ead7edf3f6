"""Batches of tokenized sentences."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lora_pl.data.tokens import Tokens
from lora_pl.errors import UserError
from lora_pl.lora.transfer import transfer

Batching = Literal["packed", "padded"]
BATCH_TOKENS = 4096
"""Tokens per batch where nothing is trained."""


@dataclass(frozen=True)
class Batch:
    """Sentences packed into one row, or one per row, padded to the longest."""

    input_ids: Tensor
    """(1, tokens) packed, (batch, length) padded, int64"""
    token_type_ids: Tensor
    """As input_ids: 1 on a pair's second text if the tokenizer has token types"""
    labels: Tensor
    """(batch,), fp32: class ids or scores; (batch, classes) for several labels per text; empty where there are none"""
    lengths: tuple[int, ...]
    """(batch,): tokens per sentence."""
    attention_mask: Tensor | None = None
    """As input_ids: 1 on tokens, 0 on padding; None in a packed batch."""
    rows: tuple[int, ...] = ()
    """(batch,): which sentences of the dataset these are."""
    pads: tuple[int, ...] = ()
    """Where in a packed row a sentence's own text says `<pad>`."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Real tokens in the batch."""
        return sum(self.lengths)

    @property
    def filler(self) -> int:
        """Tokens at a packed row's end that are no sentence's; see `filled`."""
        return self.input_ids.shape[1] - self.tokens

    @property
    def segments(self) -> tuple[int, ...]:
        """Tokens per sentence of a packed row, and those of the filler at its end."""
        return (*self.lengths, self.filler) if self.filler else self.lengths

    def filled(self, pad_token_id: int) -> Batch:
        """A packed row of several sentences with filler at its end, at least a token, up to a `common_length`.

        The filler is a segment that no sentence sees and nothing reads, so that it changes no result beyond rounding.
        A CPU's oneDNN compiles a kernel per shape and keeps it, so few shapes are faster and need less memory; on a
        GPU a short row's shapes are then those of all batches with its length and its number of sentences. A single
        sentence, and a padded batch, stay as they are.
        """
        if self.attention_mask is not None or len(self) == 1:
            return self
        missing = common_length(self.tokens + 1) - self.input_ids.shape[1]
        ids, types = F.pad(self.input_ids, (0, missing), value=pad_token_id), F.pad(self.token_type_ids, (0, missing))
        return replace(self, input_ids=ids, token_type_ids=types)

    def padded(self, pad_token_id: int) -> Batch:
        """The same sentences, one per row, padded to the longest."""
        if self.attention_mask is not None:
            return self
        lengths = torch.tensor(self.lengths, device=self.input_ids.device)[:, None]  # (batch, 1)
        real = torch.arange(max(self.lengths), device=lengths.device) < lengths  # (batch, length)
        ids, types = (torch.full(real.shape, filler, device=lengths.device) for filler in (pad_token_id, 0))
        ids[real], types[real] = self.input_ids[0, : self.tokens], self.token_type_ids[0, : self.tokens]
        return replace(self, input_ids=ids, token_type_ids=types, attention_mask=real.long(), pads=())

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`."""
        moved: dict[str, Any] = {
            name: transfer(value, device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def common_length(tokens: int) -> int:
    """The next multiple of the largest power of two that is at most a sixteenth of `tokens`: 435 -> 448.

    At most 1/16 more tokens, 2% on average, and 16 different lengths from one power of two to the next.
    """
    unit = 1 << max(0, tokens.bit_length() - 5)
    return -(-tokens // unit) * unit


def make_batch(tokens: Tokens, indices: Sequence[int], batching: Batching, pad_token_id: int) -> Batch:
    """The sentences `indices`, packed into one row or padded to the longest of them."""
    chosen = np.asarray(indices, dtype=np.int64)
    own = tokens.take(chosen)
    from_end = np.repeat(own.offsets[1:], own.lengths) - np.arange(len(own.ids))
    second = from_end <= np.repeat(own.second, own.lengths)  # of a pair
    ids, types = (torch.from_numpy(part[None].astype(np.int64)) for part in (own.ids, second))
    pads = tuple(np.flatnonzero(own.ids == pad_token_id).tolist())
    lengths, rows = tuple(own.lengths.tolist()), tuple(chosen.tolist())
    packed = Batch(ids, types, torch.from_numpy(own.labels), lengths, rows=rows, pads=pads)
    return packed if batching == "packed" else packed.padded(pad_token_id)


def split_by_tokens(lengths: NDArray[np.int64], budget: int, batching: Batching) -> list[int]:
    """Where to cut sentences of ascending length into batches of at most `budget` tokens: `[0, ..., len(lengths)]`.

    Padding counts as tokens in padded batches.

    Raises:
        UserError: `data.eval_batch_tokens`: a single sentence exceeds the budget.
    """
    if lengths[-1] > budget:
        raise UserError(
            "data.eval_batch_tokens", f"expected at least {lengths[-1]}, the longest sentence's tokens, got {budget}"
        )
    ends = np.cumsum(lengths)
    bounds = [0]
    while (start := bounds[-1]) < len(lengths):
        if batching == "packed":
            tokens = ends[start:] - (ends[start] - lengths[start])
        else:
            tokens = lengths[start:] * np.arange(1, len(lengths) - start + 1)
        bounds.append(start + int(np.searchsorted(tokens, budget, side="right")))
    return bounds


def indices_of_like_length(
    lengths: NDArray[np.int64], budget: int, batching: Batching, share: slice = slice(None)
) -> list[list[int]]:
    """Batches of at most `budget` tokens, as indices: the sentences, or a share of them, from short to long."""
    order = np.argsort(lengths, kind="stable")[share]
    bounds = split_by_tokens(lengths[order], budget, batching)
    return [order[start:end].tolist() for start, end in itertools.pairwise(bounds)]


@dataclass(eq=False)
class TokenDataset(Dataset[Batch]):
    """Tokenized sentences by lists of indices: `dataset[[3, 1]]` is a batch of two."""

    tokens: Tokens
    batching: Batching
    pad_token_id: int
    fills: bool = True

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        if isinstance(indices, int):  # of Lightning's own sampler
            raise UserError(
                "data",
                f"expected a batch's list of sentences, got {indices}; for overfit_batches give the trainer the data "
                "module, not its loaders",
            )
        batch = make_batch(self.tokens, indices, self.batching, self.pad_token_id)
        return batch.filled(self.pad_token_id) if self.fills else batch
