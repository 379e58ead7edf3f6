"""Timing peers side by side."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from statistics import median
from typing import TypeVar

from benchmarks.device import CPU, Device

T = TypeVar("T")


def interleaved(
    peers: Mapping[str, Callable[[T], object]], inputs: Iterable[T], warm_up: int, device: Device = CPU
) -> dict[str, float]:
    """Median seconds of each peer over the inputs, after the first `warm_up`.

    All peers are given an input before the next one comes. They take turns in going first, since the first one of a
    round finds the caches as the slowest has left them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    names = list(peers)
    for turn, given in enumerate(inputs):
        for name in itertools.islice(itertools.cycle(names), turn % len(names), turn % len(names) + len(names)):
            seconds[name].append(device.seconds(partial(peers[name], given)))
    return {name: median(values[warm_up:]) for name, values in seconds.items()}
