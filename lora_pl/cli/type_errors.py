"""What jsonargparse says of a value that does not fit its type, in one line."""

from __future__ import annotations

import re

UNION = re.compile(
    r"Subtypes: (?P<types>.*?)\s*Errors:\n(?P<errors>.*)\n\s*Given value type:.*?Given value: (?P<given>.*)", re.DOTALL
)
ENTRY = re.compile(r"^(\s*)- (.*?)(?=^\1- |\Z)", re.MULTILINE | re.DOTALL)
LITERAL = re.compile(r"(?:typing\.)?Literal\[(?P<items>[^\]]*)\]")
TYPE = re.compile(LITERAL.pattern + r"|<class '(?P<kind>[\w.]+)'>|(?P<other>[\w.]+\[[^\]]*\])")
MISSING = re.compile(r"(?P<name>\w+): expected --(?P=name), got none")
A_LIST = "a list such as [a,b]"
NO_TEXT = re.compile(r"Expected a <class 'str'>\. Got value: (?:True|False|[-+.\d]+)$", re.MULTILINE)
QUOTED = '; put numbers and words such as yes in quotes: ["yes","1"]'
NO_CLASS = re.compile(r"Expected a dot import path string: (?P<name>\S*)")


def in_one_line(said: str) -> str:
    """The error without Python's names for types; of a choice of types the error that tells most."""
    return _in_one_line(said) + QUOTED * bool(NO_TEXT.search(said))


def _in_one_line(said: str) -> str:
    if union := UNION.search(said):
        telling = [found for _, entry in ENTRY.findall(union["errors"]) if (found := _telling(entry))]
        return telling[0] if telling else f"expected {_types(union['types'])}, got {union['given'].strip()[:100]}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    plain = re.sub(r"Expected a <class '(?:list|tuple)'>", f"expected {A_LIST}", " ".join(lines[:3]))
    plain = re.sub(r"<class '(\w+)'>", r"\1", plain)
    plain = LITERAL.sub(lambda found: f"one of {', '.join(_items(found['items']))}", plain)
    return plain.replace(". Got value: ", ", got ").replace("Expected a ", "expected ").replace("typing.", "")


def _telling(entry: str) -> str:
    """The error of one type of the choice; empty if it says no more than that the value is of another."""
    if missing := MISSING.match(entry):
        return f"the class needs {missing['name']}; give it as init_args: {{{missing['name']}: ...}}"
    if unknown := NO_CLASS.match(entry):
        return f"no class {unknown['name']} is known; give its name as its module spells it, or its dotted path"
    told = " ".join(entry.split()).removeprefix("usage: ")
    return "" if entry.startswith(("Expected a ", "Not a valid subclass")) else told


def _types(types: str) -> str:
    literals: list[str] = []
    named: list[str] = []
    for found in TYPE.finditer(types):
        if found["items"]:
            literals += _items(found["items"])
        elif found["kind"] != "NoneType":
            name = found["other"] or found["kind"].rpartition(".")[2]
            named.append(A_LIST if name.startswith(("list", "tuple")) else name)
    if literals:
        named.append(f"one of {', '.join(dict.fromkeys(literals))}")
    return " or ".join(named)


def _items(literal: str) -> list[str]:
    return [item.strip(" '\"") for item in literal.split(",")]
