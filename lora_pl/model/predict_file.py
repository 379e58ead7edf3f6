"""Predictions of a file's texts into a file or to standard output, in constant memory."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from lora_pl.data import texts
from lora_pl.data.texts import STDIN, Text, TextStream
from lora_pl.errors import UserError
from lora_pl.printable import json_line
from lora_pl.reporting import say
from lora_pl.storage.write_whole import write_whole

STDOUT = "-"
PLAN, PART = "plan.json", "{:08d}.jsonl"
Rows = list[dict[str, Any]]
Answers = Callable[[Sequence[Text]], Rows]
"""From texts to rows, which need not be as many."""


def predict_file(
    stream: TextStream, output: str, answers: Answers, made_from: Mapping[str, Any], fabric: Fabric, bar: bool = False
) -> int:
    """Write the rows of all texts in their order.

    A file is written in parts: each process writes its share, and the first one joins them. After a stop the same call
    adds the parts that are missing.

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
        UserError: `output`: there is no folder for it, or several processes would share a stream; `data...`: a text
            can't be read.
    """
    if STDOUT in (output, stream.path) and fabric.world_size > 1:
        raise UserError("output", "several processes need an --input and an --output file; or take one device")
    if output == STDOUT:
        for chunk in stream:
            sys.stdout.buffer.write(_lines(answers(chunk)))
            sys.stdout.buffer.flush()
        return 0
    plan = json.dumps({**made_from, **_identity(stream), "texts": texts.CHUNK * texts.SHARD}, sort_keys=True)
    parts = Parts(output, plan)
    try:
        _write_parts(stream, parts, answers, fabric, bar)
    except BaseException:
        if fabric.world_size == 1:
            parts.keep_or_remove(resumable=stream.path != STDIN)
        raise
    fabric.barrier("predicted")
    return parts.join() if fabric.is_global_zero else 0


class Parts:
    """The parts of the file `path`, numbered from 0 in the folder `PATH.parts`: JSON lines, until they are joined.

    Args:
        path: The file to write.
        plan: What the rows depend on: parts of another plan are removed.
    """

    def __init__(self, path: str, plan: str) -> None:
        self.path, self.folder, self.plan = Path(path), Path(f"{path}.parts"), plan
        if not self.path.parent.is_dir():
            raise UserError("output", f"{path}: there is no folder {self.path.parent}")

    def prepare(self) -> None:
        """Keep the parts of the same plan, and remove everything else in the folder."""
        stored = self.folder / PLAN
        if stored.is_file() and stored.read_text(encoding="utf-8") == self.plan:
            say(f"resuming: {len(self.done())} parts are in {self.folder}")
        elif self.folder.exists():
            say(f"{self.folder} is of other texts or another checkpoint; starting anew")
            self.remove()
        write_whole(stored, lambda beside: beside.write_text(self.plan, encoding="utf-8"))

    def done(self) -> list[int]:
        """The numbers of the parts that are there, ascending."""
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.jsonl"))

    def write(self, number: int, rows: Iterable[Rows]) -> None:
        """Write one part, whole or not at all."""

        def fill(beside: Path) -> None:
            with beside.open("wb") as file:
                file.writelines(map(_lines, rows))

        write_whole(self.folder / PART.format(number), fill)

    def join(self) -> int:
        """Put the parts one after the other into the file, and remove them; the number of rows."""
        numbers, written = self.done(), 0
        if numbers != list(range(len(numbers))):
            raise UserError("output", f"{self.folder}: parts are missing; give the same command again")
        paths = [self.folder / PART.format(number) for number in numbers]

        def fill(beside: Path) -> None:
            nonlocal written
            written = (_as_parquet if self.path.suffix == ".parquet" else _as_lines)(paths, beside)

        write_whole(self.path, fill)
        self.remove()
        return written

    def keep_or_remove(self, resumable: bool) -> None:
        """After a stop: keep the parts, and say so, where there are any and the same call can add to them."""
        if resumable and (done := len(self.done())):
            count = done * texts.SHARD * texts.CHUNK
            say(f"{count:,} predictions are in {self.folder}; the same command resumes there")
        else:
            self.remove()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


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


def _lines(rows: Rows) -> bytes:
    return "".join(json_line(row) + "\n" for row in rows).encode()


def _as_lines(parts: Sequence[Path], path: Path) -> int:
    rows = 0
    with path.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                for line in file:
                    rows += 1
                    whole.write(line)
    return rows


def _as_parquet(parts: Sequence[Path], path: Path) -> int:
    """Every part is a row group; the columns are those of the first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def table(part: Path) -> Any:
        with part.open(encoding="utf-8") as file:
            return pa.Table.from_pylist([json.loads(line) for line in file])

    rows, schema = 0, table(parts[0]).schema if parts else pa.schema([])
    with pq.ParquetWriter(path, schema) as writer:
        for part in parts:
            writer.write_table(found := table(part))
            rows += found.num_rows
    return rows


def _identity(stream: TextStream) -> dict[str, Any]:
    """What tells one input from another; standard input is another each time."""
    if stream.path == STDIN:
        return {"input": STDIN, "process": os.getpid()}
    path = Path(stream.path).resolve()
    stat = path.stat()
    return {"input": str(path), "bytes": stat.st_size, "time": stat.st_mtime_ns, "columns": list(stream.columns)}
