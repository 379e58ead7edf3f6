"""A notebook, with its stored outputs, as a page."""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

PICTURE = "image/png"


def notebook_page(path: Path) -> str:
    """Its Markdown: text, code, and what each cell printed, returned or drew."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(block for cell in cells for block in blocks(cell))


def blocks(cell: dict[str, Any]) -> Iterator[str]:
    """The cell, then its outputs; texts that follow one another are one."""
    source = "".join(cell["source"])
    yield source if cell["cell_type"] == "markdown" else fenced(source, "python")
    for is_picture, outputs in groupby(cell.get("outputs", []), lambda output: PICTURE in output.get("data", {})):
        if is_picture:
            yield from (f"![](data:{PICTURE};base64,{''.join(output['data'][PICTURE]).strip()})" for output in outputs)
        else:
            yield fenced("\n".join("".join(text_of(output)).rstrip() for output in outputs), "text")


def text_of(output: dict[str, Any]) -> list[str]:
    """What it printed, or how it reads."""
    return output["text"] if "text" in output else output["data"]["text/plain"]


def fenced(text: str, language: str) -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"
