"""Predictions to a file or to standard output, batch by batch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer

from lora_pl.errors import UserError

STDOUT = "-"


class _Sink(Protocol):
    def write(self, rows: list[dict[str, Any]]) -> None: ...

    def close(self) -> None: ...


class PredictionWriter(Callback):
    """Writes a row per text, `{"text", "label", "score", "probabilities"}`, as JSON lines, or as Parquet where the
    path ends in .parquet. A file is written beside its place and renamed when all is there."""

    def __init__(self, path: str) -> None:
        if not Path(path).parent.is_dir():
            raise UserError(f"output: {path}: there is no folder {Path(path).parent}")
        self.path = path
        self.written = 0
        self._beside = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
        self._sink: _Sink | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file."""
        if self.path == STDOUT:
            self._sink = _JsonLines(sys.stdout)
        elif self.path.endswith(".parquet"):
            self._sink = _Parquet(self._beside)
        else:
            self._sink = _JsonLines(self._beside.open("w", encoding="utf-8"))

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
        assert self._sink is not None
        rows = [{**_named(text), **prediction} for text, prediction in zip(batch, outputs, strict=True)]
        self._sink.write(rows)
        self.written += len(rows)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the file and put it in its place."""
        assert self._sink is not None
        self._sink.close()
        if self.path != STDOUT:
            os.replace(self._beside, self.path)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing half-written."""
        if self.path != STDOUT:
            self._beside.unlink(missing_ok=True)


class _JsonLines:
    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, rows: list[dict[str, Any]]) -> None:
        self.file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.file.flush()

    def close(self) -> None:
        if self.file is not sys.stdout:
            self.file.close()


class _Parquet:
    def __init__(self, path: Path) -> None:
        if not Path(path).parent.is_dir():
            raise UserError(f"output: {path}: there is no folder {Path(path).parent}")
        self.path = path
        self.writer: Any = None

    def write(self, rows: list[dict[str, Any]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist(rows)
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table)

    def close(self) -> None:
        if self.writer is None:  # no text came in
            self.write([])
        self.writer.close()


def _named(text: str | Sequence[str]) -> dict[str, str]:
    return dict(zip(("text", "text_pair"), (text,) if isinstance(text, str) else text, strict=False))
