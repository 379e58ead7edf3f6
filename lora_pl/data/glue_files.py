"""The TSV files of a GLUE download: unquoted, a header line but for CoLA."""

from pathlib import Path

from lora_pl.data.examples import Examples, by_column, parse_label, require_columns
from lora_pl.data.tasks import Task
from lora_pl.errors import UserError


def read_glue_file(path: Path, task: Task) -> Examples:
    """Read one TSV file in the layout of the task.

    Raises:
        UserError: the file is missing, empty or not UTF-8, a column is missing, a line has another number of
            columns, or a label is not the task's; with file and line.
    """
    lines = _lines(path)
    header = list(task.header) if task.header else lines.pop(0).split("\t")
    first = 1 if task.header else 2
    require_columns([*task.file_columns, task.label_column], header, str(path))
    if not lines:
        raise UserError(f"{path}: no sentence in the file")
    cells = [_split(line, len(header), f"{path}, line {number}") for number, line in enumerate(lines, first)]
    columns = {name: [row[index] for row in cells] for index, name in enumerate(header)}
    labels = [
        parse_label(task, task.labels, cell, f"{path}, line {number}")
        for number, cell in enumerate(columns[task.label_column], first)
    ]
    return Examples(by_column(columns, task.file_columns), labels)


def glue_folder(source: str, task: Task) -> Path:
    """The task's folder: `source` itself, or below it where `source` is a whole GLUE download."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.source: {source} is no folder; expected hub, sample or a folder of a GLUE download")
    below = folder / task.folder
    return below if task.folder and below.is_dir() else folder


def _lines(path: Path) -> list[str]:
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise UserError(f"{path}: the file is empty")
    return [line.removesuffix("\r") for line in lines]


def read_text(path: Path) -> str:
    """The file as UTF-8, a byte order mark taken off; a UserError where that can't be."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise UserError(f"{path}, line {line}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8") from None


def _split(line: str, columns: int, where: str) -> list[str]:
    cells = line.split("\t")
    if len(cells) != columns:
        raise UserError(f"{where}: expected {columns} columns separated by tabs, got {len(cells)}")
    return cells
