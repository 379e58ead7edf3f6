"""A file of predictions as parts, until they are joined."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_pl.data import texts
from lora_pl.errors import UserError
from lora_pl.printable import json_line
from lora_pl.reporting import say
from lora_pl.storage.write_whole import SUFFIX, write_whole

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]
PLAN, PART = "plan.json", "{:08d}.jsonl"
CHANCES = "probabilities"
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
        write_whole(stored, lambda beside: beside.write_text(self.plan, encoding="utf-8"))

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


def json_lines(rows: Rows) -> bytes:
    """The rows as JSON lines; a ValueError for NaN, which JSON has not."""
    return "".join(json_line(row) + "\n" for row in rows).encode()


def write_rows(path: str, rows: Rows, example: Row | None = None) -> None:
    """Write the rows into a file by its ending, whole or not at all; `example` as in `Parts.join`."""

    def fill(beside: Path) -> None:
        part = beside.with_name(PART.format(0))
        part.write_bytes(json_lines(rows))
        WRITERS[Path(path).suffix.lower()]([part] if rows else [], beside, example)

    write_whole(Path(path), fill)


def _as_lines(parts: Sequence[Path], path: Path, example: Row | None) -> int:
    rows = 0
    with path.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                for line in file:
                    rows += 1
                    whole.write(line)
    return rows


def _as_csv(parts: Sequence[Path], path: Path, example: Row | None) -> int:
    """A column per class, `probabilities.CLASS`, as pandas' `json_normalize` names it; lists as JSON."""
    own, chances = _apart(_first(parts, example))
    rows, names = 0, ([*own], [*chances])
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if own:
            writer.writerow([*own, *(f"{CHANCES}.{label}" for label in chances)])
        for part in parts:
            for own, chances in map(_apart, _read(part)):
                if ([*own], [*chances]) != names:
                    raise _damaged(part)
                writer.writerow([*map(_cell, own.values()), *chances.values()])
                rows += 1
    return rows


def _apart(row: Row) -> tuple[Row, Row]:
    """The row without its probabilities, and those by class."""
    chances = row.get(CHANCES)
    if not isinstance(chances, dict):
        return row, {}
    return {name: cell for name, cell in row.items() if name != CHANCES}, chances


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def _as_parquet(parts: Sequence[Path], path: Path, example: Row | None) -> int:
    """Every part is a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def table(rows: Iterable[Row], part: Path) -> Any:
        try:
            found = pa.Table.from_pylist(list(rows))
            return found.cast(pa.schema([(field.name, _of_texts(field.type)) for field in found.schema]))
        except (ValueError, TypeError, pa.ArrowException):
            raise _damaged(part) from None

    first = _first(parts, example)
    rows, schema = 0, table([first] if first else [], [*parts, path][0]).schema
    with pq.ParquetWriter(path, schema) as writer:
        for part in parts:
            found = table(_read(part), part)
            if found.schema != schema:
                raise _damaged(part)
            writer.write_table(found)
            rows += found.num_rows
    return rows


def _of_texts(type: Any) -> Any:
    """The type of a column of lists, all of which may be empty; others as they are."""
    import pyarrow as pa

    return pa.list_(pa.string()) if pa.types.is_list(type) else type


def _first(parts: Sequence[Path], example: Row | None) -> Row:
    """The row whose columns a table has: the example, else its first; empty without either."""
    return example or next((row for part in parts for row in _read(part)), {})


def _read(part: Path) -> Iterator[dict[str, Any]]:
    """The part's rows.

    Raises:
        UserError: `output`, it was damaged meanwhile.
    """
    try:
        with part.open(encoding="utf-8") as file:
            for line in file:
                yield dict(json.loads(line))
    except (ValueError, TypeError, RecursionError):
        raise _damaged(part) from None


def _damaged(part: Path) -> UserError:
    return UserError("output", f"{part} is damaged; remove {part.parent} and give the command again")


WRITERS: dict[str, Callable[[Sequence[Path], Path, Row | None], int]] = {
    ".jsonl": _as_lines,
    ".csv": _as_csv,
    ".parquet": _as_parquet,
}
"""Joins parts into a file, by its ending."""
