"""Predictions to a file or to standard output, batch by batch."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lora_pl.callbacks.row_files import JsonLines, RowFile, join, open_rows
from lora_pl.data.texts import CHUNK, SHARD, STDIN, TextStream
from lora_pl.errors import UserError
from lora_pl.reporting import say
from lora_pl.storage.write_whole import write_whole
from lora_pl.training.resume.stop_signals import RunStopped

STDOUT = "-"
PLAN = "plan.json"


class PredictionWriter(Callback):
    """Writes a row per text, `{"text", "label", "score", "probabilities"}`, as JSON lines, or as Parquet where the
    path ends in .parquet.

    A file comes about in parts, in the folder `PATH.parts` beside it: every process writes its own shards of the
    input, each whole or not at all, and the first process joins them in the input's order. A run that was stopped
    goes on with the shards that are missing when the same command is given again.

    Args:
        path: The output, - for standard output.
        stream: The texts; the writer tells it which shards to read.
        made_from: What the rows depend on beside the input: parts that were made from something else are discarded.
    """

    def __init__(self, path: str, stream: TextStream, made_from: dict[str, Any]) -> None:
        if not Path(path).parent.is_dir():
            raise UserError(f"output: {path}: there is no folder {Path(path).parent}")
        self.path, self.stream, self.made_from = path, stream, made_from
        self.written = 0
        self.parts = Path(f"{path}.parts")
        self.parquet = path.endswith(".parquet")
        self._shards: Iterator[int] = iter(())
        self._open: tuple[int, RowFile] | None = None
        self._batches = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out which shards are this process's and are not done."""
        if STDOUT in (self.path, self.stream.path) and trainer.world_size > 1:
            raise UserError("output: several processes need an --input and an --output file; or take one device")
        if self.path == STDOUT:
            return
        if trainer.is_global_zero:
            self._prepare()
        trainer.strategy.barrier("parts")
        done = {int(part.stem) for part in self._done()}
        rank, world = trainer.global_rank, trainer.world_size
        self._shards = (shard for shard in itertools.count(rank, world) if shard not in done)
        self.stream.wanted = lambda shard: shard % world == rank and shard not in done

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let SIGTERM stop at once, as Ctrl-C does: what is whole stays; Lightning would go on to the end."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _stop)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a batch's rows."""
        rows = [{**_named(text), **prediction} for text, prediction in zip(batch, outputs, strict=True)]
        if self.path == STDOUT:
            JsonLines(sys.stdout.buffer, keep_open=True).write(rows)
            return
        if self._open is None:
            shard = next(self._shards)
            self._open = (shard, open_rows(self._beside(shard), self.parquet))
        self._open[1].write(rows)
        self._batches += 1
        if self._batches % SHARD == 0:
            self._finish_part()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the parts."""
        if self.path == STDOUT:
            return
        self._finish_part()
        trainer.strategy.barrier("predicted")
        if trainer.is_global_zero:
            parts = self._done()
            write_whole(Path(self.path), lambda beside: self._join(parts, beside))
            shutil.rmtree(self.parts)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing half-written, and what is whole for the next time."""
        if self._open is not None:
            shard, _ = self._open
            self._beside(shard).unlink(missing_ok=True)
        if self.path == STDOUT or not self.parts.is_dir() or trainer.world_size > 1:
            return
        done = len(self._done())
        if done and self.stream.path != STDIN:
            say(f"{done * SHARD * CHUNK:,} predictions are in {self.parts}; the same command goes on from there")
        else:
            shutil.rmtree(self.parts)

    def _prepare(self) -> None:
        plan = json.dumps({**self.made_from, **_identity(self.stream), "texts": CHUNK * SHARD}, sort_keys=True)
        stored = self.parts / PLAN
        if stored.is_file() and stored.read_text(encoding="utf-8") == plan:
            say(f"going on with {self.parts}: {len(self._done())} parts are there")
        elif self.parts.exists():
            say(f"{self.parts} is of other texts or another checkpoint and is made anew")
            shutil.rmtree(self.parts)
        for beside in self.parts.glob(".*"):
            beside.unlink()
        if not stored.is_file():
            write_whole(stored, lambda beside: beside.write_text(plan, encoding="utf-8"))

    def _done(self) -> list[Path]:
        return sorted(path for path in self.parts.iterdir() if path.stem.isdecimal())

    def _beside(self, shard: int) -> Path:
        return self.parts / f".{shard:08d}"

    def _finish_part(self) -> None:
        if self._open is not None:
            (shard, file), self._open = self._open, None
            file.close()
            os.replace(self._beside(shard), self.parts / f"{shard:08d}.rows")

    def _join(self, parts: list[Path], path: Path) -> None:
        numbers = [int(part.stem) for part in parts]
        if numbers != list(range(len(numbers))):
            raise UserError(f"output: {self.parts} has gaps; give the same command again")
        self.written = join(parts, path, self.parquet)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise RunStopped(signum, "stopped by SIGTERM")


def _identity(stream: TextStream) -> dict[str, Any]:
    """What tells one input from another; standard input is another each time."""
    if stream.path == STDIN:
        return {"input": STDIN, "process": os.getpid()}
    path = Path(stream.path).resolve()
    stat = path.stat()
    return {"input": str(path), "bytes": stat.st_size, "time": stat.st_mtime_ns, "columns": list(stream.columns)}


def _named(text: str | Sequence[str]) -> dict[str, str]:
    return dict(zip(("text", "text_pair"), (text,) if isinstance(text, str) else text, strict=False))
