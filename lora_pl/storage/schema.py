"""Values from files, checked against the types that the code itself is annotated with."""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

from typing_extensions import TypedDict, is_typeddict

from lora_pl.errors import UserError

LARGEST = 16 << 20
"""Bytes of a JSON file; those of adapters are far smaller."""


def parse_json(data: bytes, key: str, where: str) -> Any:
    """The content of a JSON file; a UserError, `key`, where it is none, too large, or nested deeper than some 200."""
    from pydantic_core import from_json

    try:
        if len(data) > LARGEST:
            raise ValueError(f"expected at most {LARGEST >> 20} MiB, got {len(data) >> 20}")
        return from_json(data)
    except ValueError as error:
        raise UserError(key, f"{where} is damaged: {error}") from error


@functools.cache
def arguments(function: Callable[..., Any]) -> Any:
    """The type of a mapping of the function's arguments by name, any of which may be missing.

    A dataclass among them is the mapping of its fields, which it checks itself.
    """
    hints = {
        name: dict[str, Any] if is_dataclass(hint) else hint
        for name, hint in typing.get_type_hints(function).items()
        if name != "return"
    }
    return TypedDict(f"arguments of {function.__qualname__}", hints, total=False)  # type: ignore[operator]


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of the function's arguments by name."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def require_json(values: Any, annotation: Any, key: str, prefix: str, unknown: str = "forbid") -> None:
    """Raise a UserError, `key`, unless `values` are JSON of the type `annotation`.

    The check is strict: true is no integer, 4.7 no length, "4" no number, NaN no rate. `prefix` begins the message: the
    file, and what the names of `values` are prefixed with; names that a mapping lacks are `unknown`: forbid or ignore.
    """
    from pydantic import ValidationError

    try:
        text = json.dumps(values)
        json.loads(text, parse_int=_int64)
        _adapter(annotation, unknown).validate_json(text, strict=True)
    except ValidationError as error:
        raise UserError(key, prefix + _told(error)) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(key, f"{prefix.rstrip('. ')}: expected numbers, texts, lists and mappings: {error}") from None


def require_values(values: Any, annotation: Any, key: str, prefix: str) -> None:
    """The same for values that JSON lacks, such as tensors; names that a mapping of `annotation` lacks are ignored."""
    from pydantic import ValidationError

    try:
        _adapter(annotation, "ignore").validate_python(values, strict=True)
    except ValidationError as error:
        raise UserError(key, prefix + _told(error)) from None


@functools.cache
def _adapter(annotation: Any, unknown: str) -> Any:
    from pydantic import TypeAdapter, with_config

    config: Any = {"strict": True, "extra": unknown, "allow_inf_nan": False, "arbitrary_types_allowed": True}
    return TypeAdapter(with_config(config)(annotation) if is_typeddict(annotation) else annotation)


def _told(error: Any) -> str:
    """`lora.r: expected a valid integer, got 4.7`: the first of pydantic's errors."""
    first: Mapping[str, Any] = error.errors(include_url=False)[0]
    name = ".".join(map(str, first["loc"])) or "all of it"
    said = first["msg"].replace("Input should be", "expected")
    got = "" if first["type"] == "missing" else f", got {first['input']!r:.60}"
    return f"{name}: {said}{got}"


def _int64(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 63:
        raise ValueError(f"{text[:30]} is no 64-bit integer")
    return int(text)
