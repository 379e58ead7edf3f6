"""Files outside docs/ in the site: its pages link to them relatively, as on GitHub."""

import re
from pathlib import Path, PurePosixPath
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebook_page import notebook_page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": "index.md", "SECURITY.md": "security.md", "benchmarks/README.md": "benchmarks.md"}
"""Pages, by their path in the repository, and their place in the site; docs/index.md stands for the README."""
COPIED = (".images/*.png", "configs/**/*.yaml")
LINK = re.compile(r"(?<=\]\()(?P<path>[^)#:\s]+)(?=[)#])")


def places() -> dict[str, str]:
    """The place in the site of every file outside docs/ that is there, by its path in the repository."""
    copied = [path.relative_to(ROOT).as_posix() for pattern in COPIED for path in ROOT.glob(pattern)]
    notebooks = [path.relative_to(ROOT) for path in ROOT.glob("notebooks/*.ipynb")]
    return {
        **PAGES,
        **{path: path.removeprefix(".") for path in copied},
        **{path.as_posix(): path.with_suffix(".md").as_posix() for path in notebooks},
    }


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add them."""
    for path, place in places().items():
        if path.endswith(".ipynb"):
            files.append(File.generated(config, place, content=notebook_page(ROOT / path)))
        elif place != "index.md":
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links between files of the repository become links between their places."""
    known = places()
    here = page.file.src_uri
    source = next((path for path, place in known.items() if place == here != "index.md"), f"docs/{here}")

    def placed(link: re.Match[str]) -> str:
        target = normpath(join(dirname(source), link["path"]))
        inside = PurePosixPath(target).is_relative_to("docs")
        place = target.removeprefix("docs/") if inside else known.get(target)
        return relpath(place, dirname(here) or ".") if place else link["path"]

    return LINK.sub(placed, markdown)
