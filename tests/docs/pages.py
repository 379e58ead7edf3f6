"""The pages, their blocks of code and their commands."""

import re
import shlex
from itertools import dropwhile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "benchmarks" / "README.md")
}
SHELL = re.compile(
    r"^```sh\n(?P<block>.*?)^```"
    r"|`(?P<line>(?:echo|lora_pl|pytest|python -m|pip)\s+[^`]*?(?:--?\w[^` ]*\s+[^`]+|report [^`]+|--help))`",
    re.DOTALL | re.MULTILINE,
)
"""A block of shell, or a command within a line: a program, and an option with its value."""
VARIABLE = re.compile(r"[A-Z_]+=")


def blocks(page: str, language: str) -> list[str]:
    """The page's blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """Every command of the page in its order, word by word: in blocks of shell, and within a line.

    Variables that are set before a program are left out.
    """
    found: list[list[str]] = []
    for code in SHELL.finditer(PAGES[page]):
        block = code["block"] or " ".join(code["line"].replace(" \\| ", " | ").split())
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.shlex(line, posix=True, punctuation_chars="|&")
            words.whitespace_split = True
            found.append([])
            for word in words:
                found[-1].append(word) if word not in ("|", "&&") else found.append([])
    without_variables = [[*dropwhile(VARIABLE.match, command)] for command in found]
    return [command for command in without_variables if command]
