"""Figures that others have published, for comparison; nothing here was measured by this project."""

from __future__ import annotations

from typing import Any

PUBLISHED: tuple[dict[str, Any], ...] = tuple(
    {
        "encoder": "roberta-base",
        "task": "sst2",
        "r": r,
        "alpha": 16,
        "learning_rate": 1e-4,
        "seeds": 1,
        "trainable_lora": 36_864 * r,
        "last": accuracy,
        "trainable_head": 1_538,
        "epochs": 3,
        "source": "published for the recipe of configs/sst2_roberta_base.yaml, mixed precision; not measured here",
    }
    for r, accuracy in ((1, 0.9335), (2, 0.9369), (4, 0.9289), (8, 0.9346))
)
"""One run per rank on the whole of SST-2; a single accuracy's standard error is 0.0084."""
