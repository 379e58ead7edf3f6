"""Choosing blocks of a model by their numbers."""

import re
from collections.abc import Iterable

from lora_pl.lora.errors import LoRAError

RANGE = re.compile(r"([0-9]{1,3})(?:-([0-9]{1,3}))?")
MOST = 1000
"""Blocks, and entries that name them."""


def block_numbers(layers: object) -> tuple[int, ...]:
    """`layers`, a number, a range such as `6-11` or several of them, as ascending numbers.

    Raises:
        LoRAError: layers: something else, or a range that is empty.
    """
    entries = layers if isinstance(layers, list | tuple) else [layers]
    if len(entries) > MOST:
        raise LoRAError("layers", f"expected at most {MOST:,}, got {len(entries):,}")
    return tuple(sorted({number for entry in entries for number in _numbers(entry)}))


def in_blocks(names: Iterable[str], numbers: Iterable[int]) -> list[str]:
    """Those of `names` that lie in one of the blocks; all of them where no number is given.

    Raises:
        LoRAError: layers: there is no such block.
    """
    # the first number in a layer's name: 3 of `encoder.layer.3.output.dense`
    blocks = {name: next((int(part) for part in name.split(".") if part.isdecimal()), None) for name in names}
    wanted = set(numbers)
    there = sorted({number for number in blocks.values() if number is not None})
    if missing := wanted.difference(there):
        listed = f"{len(there)}: {there[0]} to {there[-1]}" if there else "none"
        raise LoRAError("layers", f"there is no block {min(missing)}; blocks of the model: {listed}")
    return [name for name, number in blocks.items() if not wanted or number in wanted]


def _numbers(entry: object) -> range:
    small = type(entry) is int and 0 <= entry < MOST
    found = RANGE.fullmatch(str(entry)) if small or isinstance(entry, str) else None
    numbers = range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)
    if not numbers:
        raise LoRAError("layers", f"expected numbers of blocks, or ranges such as 6-11, got {entry!r:.60}")
    return numbers
