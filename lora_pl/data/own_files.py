"""One's own data: a file for training, validation and test each, or a data set that is named."""

from __future__ import annotations

from collections.abc import Sequence

from lora_pl.data.classes import Classes
from lora_pl.data.examples import Examples, discover_labels, read_examples
from lora_pl.data.hub import PREFIX, HubDataset
from lora_pl.data.sources import TEST, TRAIN
from lora_pl.data.task import Task
from lora_pl.errors import UserError


class OwnFiles:
    """A file per split: CSV, TSV, JSON lines or Parquet, by its ending.

    Args:
        train: The training file.
        validation: The validation file.
        test: The test file; each may be missing where it is not read.
    """

    def __init__(self, train: str | None, validation: str | None, test: str | None = None) -> None:
        self.by_split = {TEST: test, TRAIN: train, "validation": validation}

    @property
    def places(self) -> list[str]:
        """The files; the last one is what validation sentences are from."""
        return [file for file in self.by_split.values() if file]

    def read(
        self, split: str, task: Task, text_columns: Sequence[str], label_column: str, flags: Sequence[str] = ()
    ) -> Examples:
        """The texts and labels of a split.

        Raises:
            UserError: `data.train_file`, `data.validation_file`: there is none; see also `read_examples`.
        """
        return read_examples(self._file(split), task, text_columns, label_column, flags=flags)

    def classes(self, task: Classes, label_column: str) -> tuple[str, ...]:
        """The distinct labels in the training file; see `discover_labels`."""
        return discover_labels(self._file(TRAIN), label_column, task)

    def _file(self, split: str) -> str:
        file = self.by_split[split]
        if file is None:
            ways = "" if split == TRAIN else ", or --data.validation_share 0.1 to take it from the training file"
            raise UserError(f"data.{split}_file", f"expected a file, as another split has one{ways}; got none")
        return file


def own_data(source: str, *files: str | None) -> OwnFiles | HubDataset | None:
    """Data whose columns and labels are the user's: files, or a data set that is named; None for GLUE's."""
    if any(files):
        return OwnFiles(*files)
    return HubDataset(source) if source.startswith(PREFIX) else None
