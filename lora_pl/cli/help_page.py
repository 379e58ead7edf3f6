"""Help on every option of a parser, Lightning's Trainer last."""

from __future__ import annotations

import re
import shutil
import textwrap
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Iterator
from typing import Any

SECTIONS = {
    "": "options",
    "model": "the model",
    "model.lora": "LoRA",
    "data": "the data",
    "trainer": "Lightning's Trainer",
}
"""Titles, by what the options begin with, in the page's order."""
OURS = {
    "ckpt_path": "best.ckpt or last.ckpt of a run.",
    "config": "A YAML file of options, which flags override.",
    "print_config": "Print every option with its value, and exit.",
    "seed_everything": "Seed of weights, data and dropout.",
    "trainer.callbacks": "Classes by name or dotted path; --trainer.callbacks.help NAME lists the options of one.",
    "trainer.devices": "How many, which ([0,2]), or auto.",
    "trainer.max_time": "Stop training after this time, DD:HH:MM:SS.",
    "trainer.val_check_interval": "Validate within the epoch too: after a fraction of it, or a number of batches.",
    "trainer.precision": "32-true, bf16-mixed or 16-mixed; by default the fastest this device supports.",
}
"""What is said of Lightning's options where its own words are about something else."""
ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")
SENTENCE = re.compile(r"(?<=\.)\s+(?=[A-Z:])")


def help_page(parser: ArgumentParser, unused: str, stored: str) -> str:
    """The options of a parser by section, each with its choices, its [default] and its help.

    `unused` and `stored` are patterns: of options to leave out, and of those whose defaults are a checkpoint's.
    """
    sections: dict[str, list[str]] = {prefix: [] for prefix in SECTIONS}
    for action in _shown(parser):
        if not re.fullmatch(unused, action.dest):
            sections.setdefault(action.dest.rpartition(".")[0], []).append(
                _entry(action, " [the checkpoint's]" if re.fullmatch(stored, action.dest) else _default(action))
            )
    sections["trainer"] = sections.pop("trainer")
    positional = "".join(
        f" [{action.dest.upper()}]" if action.nargs == "?" else f" {action.dest.upper()}"
        for action in parser._actions
        if not action.option_strings
    )
    lines = [f"usage: {parser.prog}{positional} [options]", "", _filled(parser.description or "", "")]
    for prefix, entries in sections.items():
        lines += ["", f"{SECTIONS.get(prefix, prefix)}:", *entries] if entries else []
    return "\n".join([*lines, ""])


def _shown(parser: ArgumentParser) -> Iterator[Action]:
    """Without links between options, help on classes, and options that stand for whole sections."""
    own = [action for action in parser._actions if action.help != SUPPRESS and not action.dest.endswith("help")]
    above = {action.dest.rpartition(".")[0] for action in own}
    for action in own:
        linked = action.option_strings and not action.option_strings[0].startswith("-")
        if not linked and action.dest not in above:
            yield action


def _entry(action: Action, default: str) -> str:
    name = f"--{action.dest}" if action.option_strings else action.dest.upper()
    choices = f" {action.metavar}" if str(action.metavar).startswith(("{", "NAME")) else ""
    told = OURS.get(action.dest) or _plain(action.help or "", re.fullmatch(r"trainer\.\w+", action.dest) is not None)
    return f"  {name}{choices}{default}\n{_filled(told, '      ')}"


def _default(action: Action) -> str:
    value: Any = action.default
    if action.required:
        return " (required)"
    if value in (None, SUPPRESS, (), {}, []) or action.nargs == 0:
        return ""
    if isinstance(value, bool):
        return f" [{str(value).lower()}]"
    return f" [{','.join(map(str, value)) if isinstance(value, list | tuple) else value}]"


def _plain(text: str, brief: bool) -> str:
    """Without the markup of reStructuredText; `brief`: the first sentence, as the rest is on defaults and details."""
    text = ROLE.sub(r"\1", text).replace("``", "")
    return SENTENCE.split(text)[0] if brief else re.sub(r"\.\. \w+::", "", text)


def _filled(text: str, indent: str) -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    return textwrap.fill(" ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent)
