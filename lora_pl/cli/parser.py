"""A parser whose errors name the nearest key."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from lora_pl.errors import UsageError, UserError

# how jsonargparse names a key that it does not know, on the command line and in a file
UNKNOWN_KEY = re.compile(r"(?:unrecognized arguments: --|does not accept (?:option|nested key) ')(?P<key>[\w.]+)")


MAX_BYTES, MAX_ALIASES = 1 << 20, 20


def check_configuration(path: Path) -> None:
    """Raise a UsageError for a file that is no text, or that a parser could not get through.

    A few lines of YAML whose aliases repeat each other stand for more than any memory holds.
    """
    if not path.is_file():  # the parser tells
        return
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"config: {path}: longer than {MAX_BYTES:,} bytes; is this a configuration?")
    try:
        text = path.read_text(encoding="utf-8")
        aliases = sum(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
    except UnicodeDecodeError as error:
        raise UsageError(f"config: {path}: not UTF-8 (byte 0x{error.object[error.start]:02x})") from None
    except (yaml.YAMLError, RecursionError):  # the parser tells
        return
    if aliases > MAX_ALIASES:
        raise UsageError(f"config: {path}: {aliases} aliases, expected at most {MAX_ALIASES}; write the values out")


class Parser(LightningArgumentParser):
    """`LightningArgumentParser` that raises a `UsageError` where jsonargparse prints its usage and exits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # the help of a dataclass's fields is the text below them
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        # `--ckpt` for `--ckpt_path` would be read by the parser and missed by what looks for the option
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message, with the nearest known key where one is misspelt."""
        lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
        raise UsageError(" ".join(lines[:3]) + self._nearest(message)) from ex

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Look at a configuration file before it is parsed."""
        check_configuration(Path(str(cfg_path)))
        try:
            return super().parse_path(cfg_path, *args, **kwargs)
        except UserError:
            raise
        except Exception as error:  # the parsers of YAML raise what the text leads them to
            self.error(f"config: {cfg_path}: {str(error)[:200]}", error)

    def _nearest(self, message: str) -> str:
        unknown = UNKNOWN_KEY.search(message)
        if not unknown:
            return ""
        keys = list(self.known_keys())
        wrong = unknown["key"]
        near = difflib.get_close_matches(wrong, keys, n=1) or difflib.get_close_matches(
            wrong.rpartition(".")[2], [key.rpartition(".")[2] for key in keys], n=1
        )
        return f"; did you mean --{near[0]}?" if near else ""

    def known_keys(self) -> list[str]:
        """Every key of this parser and of its verbs' parsers."""
        own = [action.dest for action in self._actions if action.option_strings]
        below = getattr(self._subcommands_action, "_name_parser_map", {}) if self._subcommands_action else {}
        return own + [key for parser in below.values() for key in parser.known_keys()]
