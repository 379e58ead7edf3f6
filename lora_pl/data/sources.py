"""A split's examples by source: the hub, a GLUE download, or the embedded sample."""

from importlib import resources
from pathlib import Path

from lora_pl.data.examples import Examples, by_column, parse_label
from lora_pl.data.glue_files import glue_folder, read_glue_file
from lora_pl.data.tasks import CUSTOM, Task
from lora_pl.errors import UserError

HUB, SAMPLE = "hub", "sample"
HUB_NAME = "nyu-mll/glue"
TRAIN = "train"


def read_split(source: str, task: Task, split: str) -> Examples:
    """The examples of `split` (`train`, or a key of `task.validation`) of a GLUE task.

    Raises:
        UserError: the source can't be reached, or what it gives is not the task's.
    """
    if task.name == CUSTOM:
        raise UserError(
            "data.source: the task custom reads own files; give --data.train_file and --data.validation_file"
        )
    if source == HUB:
        return _read_hub(task, split)
    folder = sample_folder(task) if source == SAMPLE else glue_folder(source, task)
    return read_glue_file(folder / ("train.tsv" if split == TRAIN else task.validation[split]), task)


def sample_folder(task: Task) -> Path:
    """The embedded sentences, in the layout of a GLUE download of SST-2."""
    if task.name != "sst2":
        raise UserError(f"data.source: the embedded sample is for the task sst2, not {task.name}; give a GLUE folder")
    return Path(str(resources.files("lora_pl"))) / "data" / "sample"


def _read_hub(task: Task, split: str) -> Examples:
    from datasets import load_dataset

    where = f"{HUB_NAME} ({task.name}, {split})"
    try:
        table = load_dataset(HUB_NAME, task.name, split=split)
    except Exception as error:  # the hub's client raises its own and its transport's
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"data.source: the hub's {where} could not be loaded ({first}); without a network take "
            "--data.source sample or a folder (--data.source FOLDER), or run --config configs/demo.yaml"
        ) from error
    labels = [parse_label(task, task.labels, cell, f"{where}, row {row}") for row, cell in enumerate(table["label"], 1)]
    return Examples(by_column({name: list(table[name]) for name in task.columns}, task.columns), labels)
