"""Timing peers side by side."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import TypeVar

T = TypeVar("T")


def interleaved(peers: Mapping[str, Callable[[T], object]], inputs: Iterable[T], warm_up: int) -> dict[str, float]:
    """Median seconds of each peer over the inputs, after the first `warm_up`.

    All peers are given an input before the next one comes. They take turns in going first, since the first one of a
    round finds the caches as the slowest has left them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    names = list(peers)
    for turn, given in enumerate(inputs):
        for name in itertools.islice(itertools.cycle(names), turn % len(names), turn % len(names) + len(names)):
            started = time.perf_counter()
            peers[name](given)
            seconds[name].append(time.perf_counter() - started)
    return {name: median(values[warm_up:]) for name, values in seconds.items()}
