"""The pages and their blocks of code."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "benchmarks" / "README.md")
}


def blocks(page: str, language: str) -> list[str]:
    """The page's blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """Every command of the page, word by word: in blocks of shell, and within a line with an option and its value."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    within = re.findall(r"`((?:echo|lora_pl|pytest|python -m)\s[^`]*--[^` ]+ [^`]+)`", PAGES[page])
    lines += [line for code in within if "|" not in (line := code.replace(" \\| ", " && "))]
    found: list[list[str]] = []
    for line in lines:
        words = shlex.shlex(" ".join(line.split()), posix=True, punctuation_chars="|&")
        words.whitespace_split = True
        found.append([])
        for word in words:
            found[-1].append(word) if word not in ("|", "&&") else found.append([])
    return [command for command in found if command]
