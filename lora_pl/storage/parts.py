"""A file of rows that is written in parts, so that a stop loses one of them at most."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_pl.errors import UserError
from lora_pl.reporting import say
from lora_pl.storage.row_files import Rows, join, open_rows
from lora_pl.storage.write_whole import write_whole

PLAN = "plan.json"


class Parts:
    """The parts of the file `path`, numbered from 0, in the folder `PATH.parts` until they are joined.

    Several processes may write parts, each its own; the first of them prepares the folder and joins.

    Args:
        path: JSON lines, or Parquet by its ending.
        made_from: What the rows depend on: parts that were made from something else are discarded.

    Raises:
        UserError: output: there is no folder for the file.
    """

    def __init__(self, path: str, made_from: Mapping[str, Any]) -> None:
        self.path, self.folder = Path(path), Path(f"{path}.parts")
        if not self.path.parent.is_dir():
            raise UserError("output", f"{path}: there is no folder {self.path.parent}")
        self.plan = json.dumps(dict(made_from), sort_keys=True)
        self.parquet = path.endswith(".parquet")

    def prepare(self) -> None:
        """Keep the parts of the same plan, and remove everything else in the folder."""
        stored = self.folder / PLAN
        if stored.is_file() and stored.read_text(encoding="utf-8") == self.plan:
            say(f"going on with {self.folder}: {len(self.done())} parts are there")
        elif self.folder.exists():
            say(f"{self.folder} is of other texts or another checkpoint and is made anew")
            shutil.rmtree(self.folder)
        for beside in self.folder.glob(".*"):
            beside.unlink()
        if not stored.is_file():
            write_whole(stored, lambda beside: beside.write_text(self.plan, encoding="utf-8"))

    def done(self) -> list[int]:
        """The numbers of the parts that are there, ascending."""
        return sorted(int(path.stem) for path in self.folder.iterdir() if path.stem.isdecimal())

    def write(self, number: int, rows: Iterable[Rows]) -> None:
        """Write one part, whole or not at all."""
        write_whole(self._part(number), lambda beside: self._fill(beside, rows))

    def join(self) -> int:
        """Put the parts one after the other into the file, whole or not at all, and remove them; the number of rows."""
        numbers, written = self.done(), 0
        if numbers != list(range(len(numbers))):
            raise UserError("output", f"{self.folder} has gaps; give the same command again")

        def fill(beside: Path) -> None:
            nonlocal written
            written = join([self._part(number) for number in numbers], beside, self.parquet)

        write_whole(self.path, fill)
        self.discard()
        return written

    def discard(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:08d}.rows"

    def _fill(self, path: Path, rows: Iterable[Rows]) -> None:
        file = open_rows(path, self.parquet)
        try:
            for some in rows:
                file.write(some)
        finally:
            file.close()
