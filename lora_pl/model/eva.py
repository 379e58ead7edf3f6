"""What EVA sees of a run's training data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from lora_pl.data.batches import Batch
from lora_pl.lora import InputMoments
from lora_pl.model.base import Base
from lora_pl.model.evaluating import evaluating


@torch.inference_mode()
def input_moments(base: Base, batches: Iterable[Batch], most: int) -> InputMoments:
    """The moments of the adapted layers' inputs over the first `most` of `batches`, in eval mode.

    Batches are padded, so that packed and padded ones give the same: on a packed row the last block would compute the
    first tokens alone. No random number of the run's is drawn.
    """
    moments = InputMoments(base.encoder)
    with isolate_rng(), evaluating(base.encoder):
        for batch in itertools.islice(batches, most):
            padded = batch.padded(base.tokenizer.pad_token_id).to(base.device)
            with moments.gathering(padded.attention_mask.bool()):  # type: ignore[union-attr]
                base.features(padded)
    return moments
