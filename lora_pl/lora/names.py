"""Naming layers of a model."""

import functools
import re
from collections.abc import Iterable

from lora_pl.lora.errors import LoRAError

LITERAL = re.compile(r"[\w.-]+")
LONGEST, MOST = 200, 32
"""Characters of a regular expression, and how many of them a field may have."""
COUNTED = re.compile(r"\)[*+?]?\{|\{\d*,?\d{3}")
"""Counted repetitions of a group, or of 100 and more: they multiply the size of the automaton."""


def matching(names: Iterable[str], target: str) -> list[str]:
    """Those of `names` of which `target` is the last parts, or that it matches whole as a regular expression."""
    names = list(names)
    as_pattern = set() if LITERAL.fullmatch(target) else set(matching_whole(names, target))
    return [name for name in names if f".{name}".endswith(f".{target}") or name in as_pattern]


def matching_whole(names: list[str], pattern: str) -> list[str]:
    """Those of `names` that the regular expression `pattern` matches from the first to the last character.

    Patterns may come from files, so the engine is RE2, by pyarrow: its time is linear in the names' length, where
    Python's `re` can take for ever. It has no look-around and no back-references.
    """
    import pyarrow
    from pyarrow import compute

    column = pyarrow.array(names, pyarrow.string())
    return column.filter(compute.match_substring_regex(column, rf"\A(?:{pattern})\z")).to_pylist()  # type: ignore[no-any-return]


def any_of(targets: Iterable[str]) -> str:
    """The target that matches whatever one of `targets` does."""
    parts = (rf"(?:.*\.)?{re.escape(target)}" if LITERAL.fullmatch(target) else target for target in targets)
    return "|".join(parts)


def require_patterns(field: str, patterns: Iterable[str]) -> None:
    """Raise a LoRAError, `field`, unless all `patterns` are names, or regular expressions that take little time."""
    patterns = list(patterns)
    if wrong := [pattern for pattern in patterns if not isinstance(pattern, str) or not pattern]:
        raise LoRAError(field, f"expected names or patterns, got {wrong[0]!r:.60}")
    regular = [pattern for pattern in patterns if not LITERAL.fullmatch(pattern)]
    if len(regular) > MOST:
        raise LoRAError(field, f"expected at most {MOST} regular expressions, got {len(regular)}")
    for pattern in regular:
        if problem := _problem(pattern):
            raise LoRAError(field, f"{pattern!r:.60} {problem}")


@functools.lru_cache(1024)
def _problem(pattern: str) -> str:
    """Why the regular expression is refused; nothing for a good one."""
    import pyarrow
    from pyarrow import compute

    if len(pattern) > LONGEST or COUNTED.search(pattern):
        return f"is longer than {LONGEST} characters, or repeats a group by a count, or anything 100 times"
    try:
        compute.match_substring_regex(pyarrow.array([""]), pattern)
        matching_whole([""], pattern)  # with what is put around it, too
    except (pyarrow.ArrowInvalid, UnicodeEncodeError) as error:
        said = str(error).partition("\n")[0].removeprefix("Invalid regular expression: ")
        return f"is no regular expression of RE2: {said:.100}"
    return ""


def folded(name: str) -> str:
    """The name with layer numbers folded: `encoder.layer.*.attention.self.query`."""
    return re.sub(r"\.\d+\.", ".*.", name)
