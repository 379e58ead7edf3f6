"""Text from files, safe to print."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

CONTROLS = re.compile(
    "[\0-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]"
)
"""What steers a terminal, reorders a line or can't be seen: control characters, line and paragraph separators, marks of
bidirectional text, invisible characters that no script needs, halves of surrogate pairs, which no encoding has."""


def printable(text: str, kept: str = "") -> str:
    """`text` with the characters of `CONTROLS` escaped, except those in `kept`; text of any language stays as it is."""
    return CONTROLS.sub(lambda at: at[0] if at[0] in kept else at[0].encode("unicode_escape").decode(), text)


def first_of(names: Sequence[object], most: int) -> str:
    """The first names of a list, for a line to read."""
    return ", ".join(map(str, names[:most])) + ", ..." * (len(names) > most)


def json_line(value: Any) -> str:
    """`value` as one line of JSON in which `CONTROLS` are escaped: the same to a program, harmless to a terminal.

    A ValueError for inf and NaN, which JSON lacks.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
