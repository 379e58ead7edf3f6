"""Random draws of sentences that keep the classes' shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stratified_order(classes: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """A random order in which every stretch has each class in its share, to less than two sentences.

    The j-th of the n sentences of a class, in random order, stands at (j + 1/2) / n of the whole. For a single class
    this is a random permutation.

    Args:
        classes: (sentences,)
        seed: Decides the order, with the classes alone.

    Returns:
        (sentences,): indices.
    """
    shuffled = np.random.default_rng(seed).permutation(len(classes))
    _, own, counts = np.unique(classes[shuffled], return_inverse=True, return_counts=True)
    by_class = np.argsort(own, kind="stable")
    rank = np.empty(len(classes))
    rank[by_class] = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = (rank + 0.5) / counts[own]
    return shuffled[np.argsort(place, kind="stable")]
