"""Errors of libraries that the user can fix."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.multiprocessing.spawn import ProcessRaisedException

from lora_pl.errors import UserError, first_line
from lora_pl.lora import LoRAError
from lora_pl.model.memory import is_out_of_memory
from lora_pl.training.resume.stop_signals import RunStopped

RESTORING = {"_restore_modules_and_callbacks", "restore_training_state", "restore_progress"}
"""Lightning's functions, and ours, that read a checkpoint's state into a run."""
FROM_A_PROCESS = re.compile(r"^lora_pl\.errors\.UserError: ([\w.]+): (.+)", re.MULTILINE)
"""A UserError in the traceback that a spawned process leaves."""


@contextmanager
def explained(trainer: Trainer) -> Iterator[None]:
    """Turn such an error of Lightning or torch into a UserError that says what to do.

    Raises:
        RunStopped: SIGTERM before the first step.
        UserError: `trainer.memory`, out of memory; `trainer.val_check_interval`, it is longer than the epoch;
            `trainer.callbacks`, early stopping watches a metric that there is not; `checkpoint.state`, a resumed run's
            checkpoint has another state than this run; or whatever a spawned process has raised.
    """
    try:
        yield
    except UserError:
        raise
    except ProcessRaisedException as error:
        found = FROM_A_PROCESS.search(str(error))
        if found is None:
            raise
        raise UserError(found[1], found[2]) from error
    except SIGTERMException as stop:
        raise RunStopped(signal.SIGTERM, "by SIGTERM before the first step") from stop
    except Exception as error:
        text = str(error)
        if is_out_of_memory(error):
            raise UserError(
                "trainer.memory",
                f"out of memory at step {trainer.global_step}; halve --data.batch_size and take "
                f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches * 2} for the same steps, or cut "
                "--data.eval_batch_tokens if it was validation",
            ) from error
        restores = any(frame.f_code.co_name in RESTORING for frame, _ in traceback.walk_tb(error.__traceback__))
        if restores and not isinstance(error, LoRAError):
            raise UserError(
                "checkpoint.state",
                f"the checkpoint's state does not fit this run ({type(error).__name__}: {first_line(error)}); resume "
                "from another checkpoint, or start a run",
            ) from error
        if text.startswith("Early stopping conditioned on metric"):
            raise UserError("trainer.callbacks", text) from error
        if "val_check_interval" in text:
            raise UserError("trainer.val_check_interval", " ".join(text.split())) from error
        raise
