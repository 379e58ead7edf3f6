"""A parser whose errors have keys and name the nearest option."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader, set_parsing_settings

from lora_pl.cli.help_page import help_page
from lora_pl.cli.type_errors import in_one_line
from lora_pl.errors import UsageError, UserError
from lora_pl.storage.flat import flatten
from lora_pl.storage.paths import expanded
from lora_pl.storage.yaml_file import bounded_load, line_of, read_options

# how jsonargparse says that an option is unknown (on the command line, in a file), is missing, or has a wrong value
UNKNOWN = re.compile(
    r"(?:(?P<flag>unrecognized arguments: --)|(?:Group '(?P<group>[\w.]+)' )?does not accept option '|"
    r"Option '(?=\S+ is not))(?P<key>[\w.+-]+)"
)
REQUIRED = re.compile(r"arguments are required: (?:--)?(?P<key>[\w.]+)")
WRONG = re.compile(r"""(?:Parser key "|argument (?:-\w/)?--)(?P<key>[\w.]+)"?[\w ]*:\s*(?P<said>.*)""", re.DOTALL)
SHORT = {"lr": "learning_rate", "alpha": "lora_alpha", "rank": "r", "epochs": "max_epochs", "steps": "max_steps"}
"""Options as other programs call them, by their names here."""
OF_FIT = re.compile(r"--(?:model|data)\.(?:lora\.)?(?P<own>\w+)(?P<value>=.*)?", re.DOTALL)
"""An option by its name in `fit`."""
# whatever is parsed as YAML, in files and on the command line
set_loader("yaml", partial(bounded_load, load=get_loader("yaml")), (yaml.YAMLError,))


def verb_parser(verb: str, function: Callable[..., Any], skip: Collection[str] = ()) -> Parser:
    """The parser of a verb that is a function: its signature gives the options, its docstring their help."""
    parser = Parser(prog=f"lora_pl {verb}", description=(function.__doc__ or "").partition("\n")[0])
    parser.add_function_arguments(function, as_group=False, skip=set(skip))
    return parser


class Parser(ArgumentParser):
    """jsonargparse's, but it raises a `UsageError` where jsonargparse prints its usage and exits."""

    unused = stored = ""
    """Patterns of options: those that the verb's help leaves out, and those whose defaults are a checkpoint's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # the text below a dataclass's field is its help
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        # `--ckpt` for `--ckpt_path` would be parsed here, but missed by `option_value`
        super().__init__(*args, **{"prog": "lora_pl", "allow_abbrev": False, **kwargs})
        self._files: dict[str, Path] = {}
        """The configurations read so far, as they were given."""
        self._reading = ""
        self._args: list[str] | None = None
        """What `parse_args` parses."""

    def parse_args(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """Parse; a verb that has `--encoder` takes fit's `--model.encoder` for it, and so for its other options."""
        given = args if args is None or self._subcommands_action else [self._own(str(arg)) for arg in args]
        self._args = given
        try:
            return super().parse_args(given, *more, **options)
        finally:
            self._args = None

    def _own(self, arg: str) -> str:
        found, known = OF_FIT.fullmatch(arg), self.known_keys()
        if found is None or found["own"] not in known or arg[2:].partition("=")[0] in known:
            return arg
        return f"--{found['own']}{found['value'] or ''}"

    def format_help(self, *formatter: Any) -> str:
        """Every option that the verb uses."""
        return help_page(self, self.unused, self.stored)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as a UsageError, with the option as its key (`usage` if there is none such)."""
        if missing := REQUIRED.search(message):
            raise UsageError(missing["key"], f"expected --{missing['key']}, got none; see {self.prog} --help") from ex
        if unknown := UNKNOWN.search(message):
            key = ".".join(filter(None, (unknown["group"], unknown["key"])))
            where = "" if unknown["flag"] else self.where(key)
            raise UsageError("usage", f"{where}there is no option --{key}{self.nearest(key)}") from ex
        wrong = WRONG.search(message)
        key = wrong["key"] if wrong else "config" if "parsing config" in message else "usage"
        by_flag = self._args is None or any(arg.startswith(f"--{key}") for arg in self._args)
        where = self.where(key) if self._reading or not by_flag else ""
        raise UsageError(key, where + in_one_line(wrong["said"] if wrong else message)) from ex

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Read a configuration file; a UsageError, `config`, if that fails."""
        options, self._reading = read_options(str(cfg_path)), str(cfg_path)
        self._files[str(cfg_path)] = expanded(cfg_path).absolute()
        try:
            self._require_sections(options)
            found = super().parse_path(cfg_path, *args, **kwargs)
        except UserError:
            raise
        except Exception as error:  # the parsers of YAML raise what the text leads them to
            if UNKNOWN.search(str(error)) or WRONG.search(str(error)):
                self.error(str(error), error)
            raise UsageError("config", f"{cfg_path}: {' '.join(str(error).split())[:200]}") from error
        finally:
            self._reading = ""
        if not isinstance(found.get("config"), list | None):  # of a saved configuration
            raise UsageError("config", f"{cfg_path}: config: expected a list of files, got {found['config']!r:.60}")
        return found

    def where(self, key: str) -> str:
        """`FILE, line N: ` of the last configuration that gives an option; else the one that is being read, if any."""
        for given, path in reversed(self.files().items()):
            if (line := line_of(path, key)) is not None:
                return f"{given}, line {line}: "
        return f"{self._reading}: " if self._reading else ""

    def _require_sections(self, options: Mapping[Any, Any]) -> None:
        sections = {key.rpartition(".")[0] for key in self.known_keys() if not key.endswith(".help")}
        for key, value in flatten(options).items():
            if key in sections and not isinstance(value, dict | str):  # a string is the name of a file
                raise UsageError(key, f"{self.where(key)}expected options by name, got {value!r:.60}")

    def files(self) -> dict[str, Path]:
        """The configurations that this parser and its verbs' parsers have read."""
        return {**self._files, **{given: path for parser in self._verbs() for given, path in parser.files().items()}}

    def _verbs(self) -> Collection[Parser]:
        action = self._subcommands_action
        return getattr(action, "_name_parser_map", {}).values() if action else ()

    def nearest(self, wrong: str) -> str:
        """A hint at the option that is meant; empty where none is near."""
        keys = self.known_keys()
        by_name = {key.rpartition(".")[2]: key for key in reversed(keys)}  # the model's before the data's
        name = wrong.rpartition(".")[2].replace("-", "_")
        found = by_name.get(SHORT.get(name, name))
        for given, known in ((wrong, {key: key for key in keys}), (name, by_name)):
            found = found or next((known[near] for near in difflib.get_close_matches(given, known, n=1)), None)
        return f"; did you mean --{found}?" if found else ""

    def known_keys(self) -> list[str]:
        """Every option of this parser and of its verbs' parsers."""
        own = [action.dest for action in self._actions if action.option_strings]
        return own + [key for parser in self._verbs() for key in parser.known_keys()]
