"""Random draws of sentences, which may keep the classes' shares."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_pl.data.tokens import Tokens
from lora_pl.errors import UserError
from lora_pl.reporting import say

RARE = 10
"""A set of labels that fewer sentences have is no stratum of its own: it would be all on one side."""


def drawn(tokens: Tokens, count: int, seed: int, stratified: bool) -> Tokens:
    """`count` training sentences, drawn by the seed, in their order."""
    if count > len(tokens):
        raise UserError("data.train_sentences", f"expected at most {len(tokens)}, the whole split, got {count}")
    if stratified:
        order, how = stratified_order(tokens.labels, seed), "by label and"
    else:
        order, how = np.random.default_rng(seed).permutation(len(tokens)), "at random by"
    say(f"train: {count:,} of them are used, chosen {how} seed {seed}")
    return tokens.take(np.sort(order[:count]))


def stratified_order(classes: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """A random order in which every stretch has each class in its share, to less than two sentences.

    The j-th of the n sentences of a class, in random order, stands at (j + 1/2) / n of the whole. For a single class
    this is a random permutation. Of several labels per sentence, every set of labels is a class, but the rare ones are
    one together.

    Args:
        classes: (sentences,), or (sentences, classes) for several labels per sentence.
        seed: Decides the order, with the classes alone.

    Returns:
        (sentences,): indices.
    """
    shuffled = np.random.default_rng(seed).permutation(len(classes))
    _, own, counts = np.unique(_strata(classes)[shuffled], return_inverse=True, return_counts=True)
    by_class = np.argsort(own, kind="stable")
    rank = np.empty(len(classes))
    rank[by_class] = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = (rank + 0.5) / counts[own]
    return shuffled[np.argsort(place, kind="stable")]


def _strata(labels: NDArray[np.float32]) -> NDArray[Any]:
    """(sentences,): a number for each stratum."""
    if labels.ndim == 1:
        return labels
    _, own, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    return np.where(counts[own] < RARE, -1, own)
