"""Naming layers of a model."""

import re


def matches(name: str, target: str) -> bool:
    """Whether `target` is the last parts of a layer's name, or a regular expression over the whole of it."""
    return f".{name}".endswith(f".{target}") or re.fullmatch(target, name) is not None


def folded(name: str) -> str:
    """The name with layer numbers folded: `encoder.layer.*.attention.self.query`."""
    return re.sub(r"\.\d+\.", ".*.", name)
