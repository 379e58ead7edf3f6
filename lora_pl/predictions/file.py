"""Predictions of a file's texts into a file or a stream, in constant memory."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_pl.data import texts
from lora_pl.data.texts import Text, TextStream
from lora_pl.errors import UserError
from lora_pl.model.one_process import OneProcess
from lora_pl.predictions.output import is_stream, opened
from lora_pl.predictions.parts import Parts
from lora_pl.predictions.writers import Row, Rows, json_lines

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Answers = Callable[[Sequence[Text]], Rows]
"""From texts to rows, which need not be as many."""


def predict_file(
    stream: TextStream,
    output: str,
    answers: Answers,
    made_from: Mapping[str, Any],
    fabric: Fabric | OneProcess,
    bar: bool = False,
    example: Row | None = None,
) -> int:
    """Write the rows of all texts in their order.

    A file is written in parts: each process writes its share, and the first one joins them. After a stop the same call
    adds the parts that are missing. A pipe or a device is written as the rows come.

    Args:
        stream: The texts.
        output: JSON lines, or CSV or Parquet by its ending; - is standard output. See `require_output`.
        answers: The model.
        made_from: What the rows depend on beside the texts.
        fabric: The processes, already launched.
        bar: Whether to show the progress where standard error is a terminal.
        example: See `Parts.join`.

    Returns:
        How many rows were written (by the first process; 0 elsewhere).

    Raises:
        UserError: `output`: several processes would share a stream; `predict.nonfinite`: a logit is inf or NaN;
            `data...`: a text can't be read.
    """
    streams = is_stream(output)
    if (streams or stream.once) and fabric.world_size > 1:
        raise UserError("output", "several processes need an --input and an --output file; or take one device")
    if streams:
        return _write_stream(_answered(stream, 0, answers), output)
    plan = json.dumps({**made_from, **_identity(stream), "texts": texts.CHUNK * texts.SHARD}, sort_keys=True)
    parts = Parts(output, plan)
    if fabric.is_global_zero:
        parts.prepare()
    try:
        _write_parts(stream, parts, answers, fabric, bar)
    except BaseException:
        if fabric.world_size == 1:
            parts.keep_or_remove(resumable=not stream.once)
        raise
    fabric.barrier("predicted")
    return parts.join(example) if fabric.is_global_zero else 0


def _write_stream(rows: Iterable[Rows], output: str) -> int:
    written = 0
    with opened(output) as file:
        for some in rows:
            file.write(json_lines(some))
            file.flush()
            written += len(some)
    return written


def _write_parts(stream: TextStream, parts: Parts, answers: Answers, fabric: Fabric | OneProcess, bar: bool) -> None:
    fabric.barrier("parts")
    done, rank, world = set(parts.done()), fabric.global_rank, fabric.world_size
    for shard, chunks in stream.shards(lambda shard: shard % world == rank and shard not in done):
        first = shard * texts.CHUNK * texts.SHARD
        parts.write(shard, _answered(_counted(chunks, first, bar and rank == 0), first, answers))


def _counted(chunks: Iterable[list[Text]], first: int, bar: bool) -> Iterator[list[Text]]:
    from tqdm.auto import tqdm

    # disable=None: hidden where standard error is no terminal
    with tqdm(desc="Predicting", unit=" texts", initial=first, disable=None if bar else True, leave=False) as progress:
        for chunk in chunks:
            yield chunk
            progress.update(len(chunk))


def _answered(chunks: Iterable[list[Text]], first: int, answers: Answers) -> Iterator[Rows]:
    """The rows of each chunk; the texts before the first one count `first`."""
    for chunk in chunks:
        try:
            yield answers(chunk)
        except UserError as error:
            if error.key != "predict.nonfinite":
                raise
            raise UserError("predict.nonfinite", f"after the first {first:,} texts, {error.message}") from error
        first += len(chunk)


def _identity(stream: TextStream) -> dict[str, Any]:
    """What tells one input from another; what is read once is another each time."""
    if stream.once:
        return {"input": stream.path, "call": secrets.token_hex(8)}
    path = Path(stream.path).resolve()
    stat = path.stat()
    return {"input": str(path), "bytes": stat.st_size, "time": stat.st_mtime_ns, "columns": list(stream.columns)}
