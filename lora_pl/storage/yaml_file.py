"""YAML of bounded size, depth and repetition: checked event by event before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lora_pl.errors import UsageError
from lora_pl.storage.paths import expanded

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1 << 20, 50, 20_000
"""Of a configuration; nodes are counted as often as aliases repeat them."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_options(path: str | Path) -> dict[Any, Any]:
    """The options of a file by name.

    Raises:
        UsageError: `config`: it is not a regular file, larger than 1 MiB, not UTF-8, no YAML, unbounded, or no mapping.
    """
    try:
        options = bounded_load(_text(path))
    except yaml.YAMLError as error:
        raise _wrong(path, error) from None
    if not isinstance(options, dict):
        raise _wrong(path, "expected options by name")
    return options


def _text(path: str | Path) -> str:
    path = expanded(path)
    if not path.is_file():
        raise _wrong(path, "not a regular file" if path.exists() else "no such file")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _wrong(path, f"expected at most {MAX_BYTES:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _wrong(path, f"not UTF-8 (byte 0x{data[error.start]:02x})") from None


def line_of(path: str | Path, key: str) -> int | None:
    """The line, from 1, at which a file that `read_options` has read gives the option `key`; None if none does."""
    return _line(yaml.compose(_text(path), Loader=LOADER), key)


def _line(node: Any, key: str) -> int | None:
    for name, value in reversed(node.value) if isinstance(node, yaml.MappingNode) else ():
        if name.value == key:
            return int(name.start_mark.line) + 1
        below = key.removeprefix(f"{name.value}.")
        if below != key and (line := _line(value, below)) is not None:
            return line
    return None


def _wrong(path: str | Path, why: object) -> UsageError:
    said = " ".join(str(why).split()).replace('in "<unicode string>", ', "in ")[:200]
    hint = "; indent by spaces, not tabs" if "cannot start any token" in said else ""
    return UsageError("config", f"{path}: {said}{hint}")


def bounded_load(text: str, load: Callable[[str], Any] = yaml.safe_load) -> Any:
    """The value of `text` by `load`; a YAMLError whatever is wrong with it."""
    require_bounded(text)
    try:
        return load(text)
    except yaml.YAMLError:
        raise
    except Exception as error:  # constructors raise what the text leads them to: IndexError, ValueError, ...
        raise yaml.YAMLError(str(error)) from None


def require_bounded(text: str) -> None:
    """Raise a YAMLError if the value of `text` is too large, too deep, or contains itself."""
    if len(text) > MAX_BYTES:
        raise yaml.YAMLError(f"expected at most {MAX_BYTES:,} characters")
    nodes = 0
    begun: list[tuple[str | None, int]] = []  # the collections that are open
    sizes: dict[str | None, int] = {}  # each anchor's nodes
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise yaml.YAMLError(f"*{event.anchor} is not defined, or contains itself")
            nodes += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            sizes[anchor] = nodes - before
        elif isinstance(event, yaml.NodeEvent):
            sizes.pop(event.anchor, None)
            begun.append((event.anchor, nodes))
            nodes += 1
            if isinstance(event, yaml.ScalarEvent):
                sizes[begun.pop()[0]] = 1
        if nodes > MAX_NODES or len(begun) > MAX_DEPTH:
            raise yaml.YAMLError(f"expected at most {MAX_NODES:,} values, nested {MAX_DEPTH} deep")
