"""Predictions of a file's texts into a file or to standard output, in constant memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from lora_pl.data import texts
from lora_pl.data.texts import STDIN, Text, TextStream
from lora_pl.errors import UserError
from lora_pl.reporting import say
from lora_pl.storage.parts import Parts
from lora_pl.storage.row_files import JsonLines, Rows

STDOUT = "-"
Answers = Callable[[Sequence[Text]], Rows]
"""From texts to rows, which need not be as many."""


def predict_file(
    stream: TextStream, output: str, answers: Answers, made_from: Mapping[str, Any], fabric: Fabric, bar: bool = False
) -> int:
    """Write the rows of all texts in their order.

    A file is written in parts (see `Parts`): each process writes its share, the first one joins them. After a stop the
    same call goes on with the parts that are missing.

    Args:
        stream: The texts.
        output: JSON lines, or Parquet by its ending; - is standard output.
        answers: The model.
        made_from: What the rows depend on beside the texts.
        fabric: The processes, already launched.
        bar: Whether to show the progress where standard error is a terminal.

    Returns:
        How many rows were written into the file (by the first process; 0 elsewhere, and on standard output).

    Raises:
        UserError: output: there is no folder for it, or several processes are to share a stream; or a text can't be
            read.
    """
    if STDOUT in (output, stream.path) and fabric.world_size > 1:
        raise UserError("output", "several processes need an --input and an --output file; or take one device")
    if output == STDOUT:
        for chunk in stream:
            JsonLines(sys.stdout.buffer, keep_open=True).write(answers(chunk))
        return 0
    parts = Parts(output, {**made_from, **_identity(stream), "texts": texts.CHUNK * texts.SHARD})
    try:
        _write_parts(stream, parts, answers, fabric, bar)
    except BaseException:
        if fabric.world_size == 1:
            _keep_or_discard(parts, resumable=stream.path != STDIN)
        raise
    fabric.barrier("predicted")
    return parts.join() if fabric.is_global_zero else 0


def _write_parts(stream: TextStream, parts: Parts, answers: Answers, fabric: Fabric, bar: bool) -> None:
    if fabric.is_global_zero:
        parts.prepare()
    fabric.barrier("parts")
    done, rank, world = set(parts.done()), fabric.global_rank, fabric.world_size
    for shard, chunks in stream.shards(lambda shard: shard % world == rank and shard not in done):
        parts.write(shard, map(answers, _counted(chunks, shard, bar and rank == 0)))


def _counted(chunks: Iterable[list[Text]], shard: int, bar: bool) -> Iterator[list[Text]]:
    from tqdm.auto import tqdm

    first = shard * texts.CHUNK * texts.SHARD
    # disable=None: hidden where standard error is no terminal
    with tqdm(desc="Predicting", unit=" texts", initial=first, disable=None if bar else True, leave=False) as progress:
        for chunk in chunks:
            yield chunk
            progress.update(len(chunk))


def _keep_or_discard(parts: Parts, resumable: bool) -> None:
    done = len(parts.done()) if parts.folder.is_dir() else 0
    if done and resumable:
        count = done * texts.SHARD * texts.CHUNK
        say(f"{count:,} predictions are in {parts.folder}; the same command goes on from there")
    else:
        parts.discard()


def _identity(stream: TextStream) -> dict[str, Any]:
    """What tells one input from another; standard input is another each time."""
    if stream.path == STDIN:
        return {"input": STDIN, "process": os.getpid()}
    path = Path(stream.path).resolve()
    stat = path.stat()
    return {"input": str(path), "bytes": stat.st_size, "time": stat.st_mtime_ns, "columns": list(stream.columns)}
