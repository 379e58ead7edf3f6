"""Failures of libraries that a user can mend."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lora_pl.errors import UserError
from lora_pl.training.resume.stop_signals import RunStopped

NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


@contextmanager
def explained(trainer: Trainer) -> Iterator[None]:
    """Turn what Lightning and torch raise in such a case into a UserError that says what to do."""
    try:
        yield
    except UserError:
        raise
    except SIGTERMException as stop:
        raise RunStopped(signal.SIGTERM, "stopped by SIGTERM before the run listened to it") from stop
    except (RuntimeError, ValueError, MemoryError) as error:
        said = _what_to_do(error, trainer)
        if said is None:
            raise
        raise UserError(said) from error


def _what_to_do(error: Exception, trainer: Trainer) -> str | None:
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY.search(text):
        halved = trainer.accumulate_grad_batches * 2
        return (
            f"out of memory at step {trainer.global_step}; halve --data.batch_size and take "
            f"--trainer.accumulate_grad_batches {halved} for the same steps, or cut --data.eval_batch_tokens if it was "
            "validation"
        )
    if "val_check_interval" in text:
        return f"trainer.val_check_interval: {' '.join(text.split())}"
    return None
