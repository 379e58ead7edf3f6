"""Settings as plain values: by their full names, without NumPy's types and paths'."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

PATTERNS = ("rank_pattern", "alpha_pattern")
"""Settings whose keys are names of layers, not of options: they stay whole."""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model": {"lora": {"r": 4}}}` -> `{"model.lora.r": 4}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and key not in PATTERNS
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def with_options(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested `values` in which `options`, by full name, have replaced what was there."""
    copied = {key: with_options(value, {}) if isinstance(value, Mapping) else value for key, value in values.items()}
    for name, value in options.items():
        *path, last = name.split(".")
        place = copied
        for key in path:
            place[key] = place.get(key) or {}
            place = place[key]
        place[last] = value
    return copied


def primitive(value: Any) -> Any:
    """A NumPy number as Python's and a path as text, which YAML and checkpoints can hold; other values as they are."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value
