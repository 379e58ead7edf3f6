"""A parser whose errors name the nearest key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from lora_pl.errors import UsageError, UserError

# how jsonargparse names a key that it does not know, on the command line and in a file
UNKNOWN_KEY = re.compile(r"(?:unrecognized arguments: --|does not accept (?:option|nested key) ')(?P<key>[\w.]+)")
# one with a value that it does not take
WRONG_VALUE = re.compile(r'(?:Parser key "|argument --)(?P<key>[\w.]+)"?: *(?P<said>.*)', re.DOTALL)
# and a required one that is not given
REQUIRED_KEY = re.compile(r"arguments are required: (?:--)?(?P<key>[\w.]+)")


def verb_parser(verb: str, function: Callable[..., Any], skip: Collection[str] = ()) -> Parser:
    """The parser of a verb that is a function: its signature gives the options, its docstring their help."""
    described = (function.__doc__ or "").partition("\n")[0]
    parser = Parser(prog=f"lora_pl {verb}", description=described)
    parser.add_function_arguments(function, as_group=False, skip=set(skip))
    return parser


class Parser(LightningArgumentParser):
    """`LightningArgumentParser` that raises a `UsageError` where jsonargparse prints its usage and exits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # the help of a dataclass's fields is the text below them
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        # `--ckpt` for `--ckpt_path` would be read by the parser and missed by what looks for the option
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message, with the nearest known key where one is misspelt."""
        if missing := REQUIRED_KEY.search(message):
            key = missing["key"]
            raise UsageError(key, f"expected --{key}, got none; see {self.prog} --help") from ex
        said = " ".join(line.strip() for line in message.strip().splitlines()[:3])
        if wrong := WRONG_VALUE.match(said):
            raise UsageError(wrong["key"], wrong["said"]) from ex
        raise UsageError("options", said + self._nearest(message)) from ex

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Tell of a configuration file that can't be read as a UsageError."""
        try:
            return super().parse_path(cfg_path, *args, **kwargs)
        except UserError:
            raise
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UsageError("config", f"{cfg_path}: not UTF-8 (byte 0x{byte:02x})") from None
        except Exception as error:  # the parsers of YAML raise what the text leads them to
            raise UsageError("config", f"{cfg_path}: {' '.join(str(error).split())[:200]}") from error

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
