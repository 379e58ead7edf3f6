"""Hostile variations of valid input: of its bytes, of its values, of the archive around it."""

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

PIECES = (
    b"\x00", b'"', b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n\n", b"\t\t", b"[" * 5000, b"1" * 5000, b"1e999", b"NaN",
    b'{"a":' * 3000, b"\\ud800", b"=cmd|' /C calc'!A0", b"label", b"sentence", "\u2028".encode(), b"\x1b[2J",
)  # fmt: skip
SLOW = "(([a-z.0-9_]+)+)+!"
"""A pattern that takes `re` for ever."""


def nested(depth: int) -> Any:
    """A list in a list in a list, ..."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 4.7, 1e-30, 1 << 31, 1 << 70, float("nan"), float("inf"), "", "text", "4",
    "\x1b[2J", "a\nb", "\ud800", "../x", "/dev/zero", "package://decoy/x", SLOW, "(", "a" * 5000, [], {}, [None],
    ["query", 3], [["query"]], {"": ""}, {"query": 8}, {SLOW: 2}, {"query": "8"}, nested(40), nested(150),
]  # fmt: skip
"""What a schema must refuse or take, wherever it stands."""


@st.composite
def changed_bytes(draw: Any, valid: bytes, pieces: Sequence[bytes] = PIECES, start: int = 0) -> bytes:
    """Valid bytes, from `start` on with some changed, cut, doubled, or with hostile pieces put in."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(min(start, len(data)), max(start, len(data) - 1)))
        kind = draw(st.sampled_from(["change", "cut", "double", "put", "truncate"]))
        length = draw(st.sampled_from([1, 2, 8, 64, 512]))
        if kind == "change":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length] * draw(st.sampled_from([1, 3, 50]))
        elif kind == "truncate":
            del data[at:]
        else:
            data[at:at] = draw(st.sampled_from(pieces) if pieces else st.binary(max_size=32))
    return bytes(data)


Edit = Callable[[Any, Any], list[tuple[Any, Any]]]
"""From a key and its value to the pairs that take their place."""


@st.composite
def changed_values(draw: Any, valid: Any, values: Sequence[Any] = (), keys: Sequence[Any] = ()) -> Any:
    """A tree of dicts and lists with some values replaced, left out, moved, nested, repeated, or keys renamed."""
    any_value = st.sampled_from([*VALUES, *values])
    any_key = st.sampled_from([*keys, "", "extra", "\x1b[2J"])
    tree = [valid]
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        value, other = draw(any_value), draw(any_key)
        edits: dict[str, Edit] = {
            "replace": lambda key, old, value=value: [(key, value)],
            "add": lambda key, old, value=value, other=other: [(key, old), (other, value)],
            "drop": lambda key, old: [],
            "rename": lambda key, old, other=other: [(other, old)],
            "nest": lambda key, old: [(key, {key: old})],
            "list": lambda key, old: [(key, [old])],
            "repeat": lambda key, old, other=other: [(key, old), (other, old)],
        }
        path = _path(draw, tree)
        kind = draw(st.sampled_from(["replace", "replace", "replace", *edits]))
        tree = _edited(tree, path, edits[kind])
    return tree[0] if tree else None


def _path(draw: Any, tree: Any) -> list[Any]:
    """Keys from the root to some value; every level's keys are equally likely, however much is below them."""
    path: list[Any] = []
    while (items := list(_items(tree))) and draw(st.integers(0, 19 if len(path) < 2 else 3)) != 1:
        key, tree = draw(st.sampled_from(items))
        path.append(key)
    return path or [0]


def _items(tree: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, dict):
        yield from tree.items()
    elif isinstance(tree, list | tuple):
        yield from enumerate(tree)


def _edited(tree: Any, path: Sequence[Any], edit: Edit) -> Any:
    pairs: list[tuple[Any, Any]] = []
    for key, value in _items(tree):
        if key is not path[0] and key != path[0]:
            pairs.append((key, value))
        else:
            pairs += [(key, _edited(value, path[1:], edit))] if path[1:] else edit(key, value)
    return dict(pairs) if isinstance(tree, dict) else type(tree)(value for _, value in pairs)


@st.composite
def changed_archive(draw: Any, valid: bytes) -> bytes:
    """A zip whose records, order, compression, surroundings or directory differ, its checksums as they should be."""
    with zipfile.ZipFile(io.BytesIO(valid)) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    indices = st.integers(0, len(records) - 1)
    packed = -1
    for _ in range(draw(st.integers(1, 3))):
        (name, data), at, kind = records[draw(indices)], draw(indices), draw(st.integers(0, 5))
        if kind == 0:  # one record's content under another's name
            records[at] = (records[at][0], data)
        elif kind == 1:
            records[at] = (draw(st.sampled_from([name, " ", "../x", "/x", "archive/data.pkl", "x\x1b[2J"])), data)
        elif kind == 2:
            records.insert(at, (name, data))
        elif kind == 3:
            records[at] = (records[at][0], draw(changed_bytes(records[at][1])))
        elif kind == 4:
            records.insert(at, records.pop(draw(indices)))
        else:
            packed = at
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for index, (name, data) in enumerate(records):
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if index == packed else zipfile.ZIP_STORED)
    content = made.getvalue()
    around = draw(st.sampled_from(["", "", "before", "after", "twice", "directory"]))
    if around == "directory":
        return draw(changed_bytes(content, (), start=content.rindex(b"PK\1\2") - 200))
    before = {"before": b"\x80\x02N.", "twice": valid}.get(around, b"")
    return before + content + (b"\0" * 9 if around == "after" else b"")
