"""A notebook, with its stored outputs, as a page."""

import json
from pathlib import Path
from typing import Any


def notebook_page(path: Path) -> str:
    """Its Markdown: text, code, and what each cell printed, returned or drew."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(block for cell in cells for block in blocks(cell))


def blocks(cell: dict[str, Any]) -> list[str]:
    """The cell, then its outputs."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    return [fenced(source, "python"), *map(shown, cell["outputs"])]


def shown(output: dict[str, Any]) -> str:
    """A picture as one, anything else as text."""
    data = output.get("data", {})
    if "image/png" in data:
        return f"![](data:image/png;base64,{''.join(data['image/png']).strip()})"
    return fenced("".join(output.get("text") or data["text/plain"]).rstrip(), "text")


def fenced(text: str, language: str) -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"
