"""Any labelled data set of the hub, or a folder in the hub's layout."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lora_pl.data.classes import Classes, label_text
from lora_pl.data.examples import Examples, classes_of, examples_of, list_columns, listed
from lora_pl.data.rows import Row, cell_text, require_columns
from lora_pl.data.sources import HUB, SAMPLE, TRAIN
from lora_pl.data.task import Task
from lora_pl.errors import UserError
from lora_pl.storage.paths import expanded

PREFIX = "hub:"
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
VALIDATION = ("validation", "test")
"""The first of these splits that there is validates."""


class HubDataset:
    """The splits of `hub:NAME` or `hub:NAME:CONFIGURATION`, read by `datasets`, which runs no code of theirs.

    Args:
        source: NAME is a data set on the hub, or a folder in the hub's layout (Parquet, CSV or JSON files by split,
            with or without a README.md that names them).
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.name, _, self.configuration = source.removeprefix(PREFIX).partition(":")

    @property
    def folder(self) -> Path | None:
        """The local folder; None for a data set on the hub."""
        path = expanded(self.name)
        return path if self.name and path.is_dir() else None

    @property
    def places(self) -> list[str]:
        """The local folder, if it is one."""
        return [str(self.folder)] if self.folder else []

    def split(self, split: str) -> str:
        """The name of `split` there: test, for a validation split that there is not.

        Raises:
            UserError: `data.source`: there is none.
        """
        names = list(self._splits)
        wanted = (split,) if split == TRAIN else VALIDATION
        found = next((name for name in wanted if name in names), None)
        if found is None:
            way = "" if split == TRAIN else "; give --data.validation_share 0.1 to take one from the training split"
            there = f"there are: {', '.join(map(str, names))}"
            raise UserError("data.source", f"{self.source}: no split {' or '.join(wanted)}; {there}{way}")
        return found

    def read(
        self, split: str, task: Task, text_columns: Sequence[str], label_column: str, flags: Sequence[str] = ()
    ) -> Examples:
        """The texts and labels of a split; a `ClassLabel` is read by its names, and by its ids if those are renamed.

        Raises:
            UserError: `data.source`: see `split`; `data.column`, `data.row`, `data.label`, `data.empty`: see
                `read_examples`.
        """
        name = self.split(split)
        columns = [*text_columns, *(flags or [label_column])]
        rows = self._rows(name, columns, list_columns(task, label_column), () if flags else task.labels)
        return examples_of(listed(rows, flags, task.labels), task, f"{self.source}, {name}")

    def classes(self, task: Classes, label_column: str) -> tuple[str, ...]:
        """The names of the label's `ClassLabel`; in any other column the distinct labels, as in a file."""
        name = self.split(TRAIN)
        self._require_columns(name, [label_column])
        rows = self._rows(name, [label_column], list_columns(task, label_column))
        return self._names(name, label_column) or classes_of(rows, task, f"{self.source}, {name}", label_column)

    def _rows(
        self, name: str, columns: Sequence[str], lists: Collection[str], labels: Sequence[str] = ()
    ) -> Iterator[Row]:
        self._require_columns(name, columns)
        own = self._names(name, columns[-1])
        names = labels if _renamed(own, labels) else own
        table = self._splits[name].select_columns(list(dict.fromkeys(columns)))
        for number, row in enumerate(table, 1):
            where = f"{self.source}, {name}, row {number}"
            if own and labels:
                row[columns[-1]] = _named(row[columns[-1]], names)
            yield where, tuple(cell_text(row[column], where, column in lists) for column in columns)

    def _names(self, name: str, column: str) -> tuple[str, ...]:
        """The names of a column's `ClassLabel`, or list of them; none for another column."""
        feature = self._splits[name].features[column]
        return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())

    def _require_columns(self, name: str, columns: Sequence[str]) -> None:
        require_columns(columns, self._splits[name].column_names, f"{self.source}, {name}")

    @cached_property
    def _splits(self) -> Any:
        """The tables by split."""
        from datasets import load_dataset

        if self.folder is None and not REPOSITORY.fullmatch(self.name):
            raise UserError("data.source", f"{self.source}: no such folder; expected hub:NAME or hub:FOLDER")
        try:
            return load_dataset(str(self.folder or self.name), self.configuration or None)
        except Exception as error:  # the hub's client raises its own and its transport's
            raise UserError(
                "data.source",
                f"{self.source} could not be loaded ({' '.join(str(error).split())[:300]}); expected hub:NAME or "
                "hub:NAME:CONFIGURATION of a data set that can be reached, or hub:FOLDER",
            ) from error


def _renamed(own: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether `labels` are other names of the same ids: as many, and none that is another id's in `own`."""
    before, after = [label_text(name) for name in own], [label_text(name) for name in labels]
    return len(own) == len(labels) and all(
        old == new or old not in after for old, new in zip(before, after, strict=True)
    )


def _named(label: Any, names: Sequence[str]) -> Any:
    """A `ClassLabel`'s value, or list of them, by name."""
    if isinstance(label, list):
        return [_named(item, names) for item in label]
    return names[label] if label is not None and 0 <= label < len(names) else label


def absolute(path: str | None) -> str | None:
    """The path of a file, a folder or `hub:FOLDER` made absolute, as checkpoints store it; anything else as it is."""
    if path is None or path in (HUB, SAMPLE):
        return path
    if not path.startswith(PREFIX):
        return str(expanded(path).resolve())
    data = HubDataset(path)
    return f"{PREFIX}{data.folder.resolve()}{data.configuration and f':{data.configuration}'}" if data.folder else path
