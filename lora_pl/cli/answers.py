"""What answers to a file of texts need, whoever gives them: the texts, a row's columns, a stop, the report."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from lora_pl.data.task import Task
from lora_pl.data.texts import Format, TextStream, named, with_kept
from lora_pl.errors import UserError
from lora_pl.predictions.output import STDOUT
from lora_pl.reporting import say
from lora_pl.training.resume.stop_signals import RunStopped


def stream_with(kept: Sequence[str], path: str, columns: Sequence[str], format: Format | None) -> TextStream:
    """The texts in `columns`, with the columns that are kept; a UserError, `keep_columns`, for a file without any."""
    stream = TextStream(path, [*columns, *kept], format)
    if kept and not stream.ending:
        raise UserError("keep_columns", f"{stream.path} has no columns; give a table, or its --input_format")
    return stream


def example_row(task: Task, kept: Sequence[str], **own: str) -> dict[str, Any]:
    """The row of an empty text; a UserError, `keep_columns`, where two columns would have one name."""
    row = {**named(("",) * len(task.columns)), **own, **task.predictions(torch.zeros(1, task.outputs))[0]}
    whole = with_kept(row, dict.fromkeys(kept, ""))
    if len(whole) < len(row) + len(kept):
        raise UserError(
            "keep_columns",
            f"expected different names, got {', '.join(kept)} (a column that the answers have too becomes input_NAME)",
        )
    return whole


def report(written: int, output: str, stream: TextStream, asked: int, cut: int, lengths: Iterable[int]) -> None:
    """Say what was written, cut and skipped."""
    told = [
        f"{written:,} predictions in {output}" * (output != STDOUT),
        f"{cut:,} of {asked:,} texts cut at {' or '.join(map(str, sorted(set(lengths))))} tokens" * (cut > 0),
        f"{stream.blank:,} empty row{'s' * (stream.blank > 1)} skipped" * (stream.blank > 0),
    ]
    if any(told):
        say("; ".join(filter(None, told)))


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM stops at once, as Ctrl-C does; whole parts are kept."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise RunStopped(signum, "by SIGTERM")

    if threading.current_thread() is not threading.main_thread():  # no other thread can set a handler
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
