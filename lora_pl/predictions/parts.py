"""A file of predictions as parts, until they are joined."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lora_pl.data import texts
from lora_pl.errors import UserError
from lora_pl.predictions.writers import WRITERS, Row, Rows, json_lines
from lora_pl.reporting import say
from lora_pl.storage.write_whole import SUFFIX, write_text_whole, write_whole

PLAN, PART = "plan.json", "{:08d}.jsonl"
OWN = re.compile(r"\d{8,}\.jsonl")


class Parts:
    """The parts of the file `path`, numbered from 0 in the folder `PATH.parts`: JSON lines, until they are joined.

    Args:
        path: The file to write.
        plan: What the rows depend on: parts of another plan are removed.
    """

    def __init__(self, path: str, plan: str) -> None:
        self.path, self.folder, self.plan = Path(path), Path(f"{path}.parts"), plan

    def prepare(self) -> None:
        """Keep the parts of the same plan, and remove those of another.

        Raises:
            UserError: `output`: the folder holds something else, and is left alone.
        """
        self._require_own()
        stored = self.folder / PLAN
        if stored.is_file() and stored.read_text(encoding="utf-8") == self.plan:
            if done := self.done():
                say(f"resuming: {len(done)} parts are in {self.folder}")
            return
        if stored.is_file():
            say(f"{self.folder} is of other texts or another checkpoint; starting anew")
            self.remove()
        write_text_whole(stored, self.plan)

    def done(self) -> list[int]:
        """The numbers of the parts that are there, ascending."""
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.jsonl"))

    def write(self, number: int, rows: Iterable[Rows]) -> None:
        """Write one part, whole or not at all."""

        def fill(beside: Path) -> None:
            with beside.open("wb") as file:
                file.writelines(map(json_lines, rows))

        write_whole(self.folder / PART.format(number), fill)

    def join(self, example: Row | None = None) -> int:
        """Put the parts one after the other into the file, and remove them; the number of rows.

        Args:
            example: Gives a table its columns, which it has without rows too; by default the first row does.
        """
        numbers, written = self.done(), 0
        if numbers != list(range(len(numbers))):
            raise UserError("output", f"{self.folder}: parts are missing; give the same command again")
        paths = [self.folder / PART.format(number) for number in numbers]

        def fill(beside: Path) -> None:
            nonlocal written
            written = WRITERS[self.path.suffix.lower()](paths, beside, example)

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
        """Remove the folder; not what else somebody has put there since."""
        with suppress(OSError):
            for path in [*filter(_is_own, self.folder.iterdir()), self.folder / PLAN]:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            self.folder.rmdir()

    def _require_own(self) -> None:
        if not os.path.lexists(self.folder):
            return
        is_folder = self.folder.is_dir() and not self.folder.is_symlink()
        if not is_folder or not (_is_plan(self.folder / PLAN) or all(map(_is_unfinished, self.folder.iterdir()))):
            raise UserError("output", f"{self.folder} is needed for parts, but is something else; rename it")
        if other := [path.name for path in self.folder.iterdir() if path.name != PLAN and not _is_own(path)]:
            raise UserError("output", f"{self.folder} is needed for parts, but holds {other[0]!r} too; move that away")


def _is_plan(path: Path) -> bool:
    """Whether `predict_file` wrote the file."""
    try:
        return path.is_file() and "texts" in json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, RecursionError):
        return False


def _is_own(path: Path) -> bool:
    return bool(OWN.fullmatch(path.name)) or _is_unfinished(path)


def _is_unfinished(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == SUFFIX
