"""A split's examples by source: the hub, a GLUE download, or the embedded sample."""

from importlib import resources
from pathlib import Path

from lora_pl.data.examples import Examples, examples_of, read_examples
from lora_pl.data.task import Task
from lora_pl.data.tasks import OWN_TASKS
from lora_pl.errors import UserError, first_line
from lora_pl.storage.paths import expanded

HUB, SAMPLE = "hub", "sample"
HUB_NAME = "nyu-mll/glue"
TRAIN, TEST = "train", "test"


def read_split(source: str, task: Task, split: str) -> Examples:
    """The examples of `split` (`train`, or a key of `task.validation`) of a GLUE task.

    Raises:
        UserError: `data.source`: it can't be reached, or does not hold the task; see also `read_examples`.
    """
    if task.name in OWN_TASKS:
        raise UserError(
            "data.source",
            f"the task {task.name} has no source of its own; give --data."
            f"{'train' if split == TRAIN else 'validation'}_file, or --data.source hub:NAME",
        )
    if source == HUB:
        return _read_hub(task, split)
    folder = sample_folder(task) if source == SAMPLE else _glue_folder(source, task)
    return read_glue_file(folder / ("train.tsv" if split == TRAIN else task.validation[split]), task)


def read_glue_file(path: Path, task: Task) -> Examples:
    """A TSV file in the task's layout of a GLUE download; see `read_examples` for errors."""
    return read_examples(path, task, task.file_columns, task.label_column, task.header or ())


def sample_folder(task: Task) -> Path:
    """The embedded sentences, in the layout of a GLUE download of SST-2."""
    if task.name != "sst2":
        raise UserError("data.source", f"the embedded sample is for the task sst2, not {task.name}; give a GLUE folder")
    return Path(str(resources.files("lora_pl"))) / "data" / "sample"


def _glue_folder(source: str, task: Task) -> Path:
    """The task's folder: `source` itself, or below it where `source` is a whole GLUE download."""
    folder = expanded(source)
    if not folder.is_dir():
        raise UserError("data.source", f"{source} is no folder; expected hub, sample or the folder of a GLUE download")
    below = folder / task.folder
    return below if task.folder and below.is_dir() else folder


def _read_hub(task: Task, split: str) -> Examples:
    from datasets import load_dataset

    where = f"{HUB_NAME} ({task.name}, {split})"
    try:
        table = load_dataset(HUB_NAME, task.name, split=split)
    except Exception as error:  # the hub's client raises its own and its transport's
        raise UserError(
            "data.source",
            f"the hub's {where} could not be loaded ({first_line(error)}); without a network take "
            "--data.source sample or a folder (--data.source FOLDER), or run --config configs/demo.yaml",
        ) from error
    cells = zip(*(table[name] for name in (*task.columns, "label")), strict=True)
    return examples_of(((f"{where}, row {number}", row) for number, row in enumerate(cells, 1)), task, where)
