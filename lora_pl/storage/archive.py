"""A look into a PyTorch file before PyTorch reads it."""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from lora_pl.errors import UserError

STORAGES = {
    "Byte": 1, "Char": 1, "Bool": 1, "Short": 2, "Half": 2, "BFloat16": 2, "Int": 4, "Float": 4, "Long": 8, "Double": 8,
}  # fmt: skip
"""Bytes per element of the storages that a checkpoint may hold."""
ALLOWED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {name}Storage" for name in STORAGES),
}
"""The only names that a checkpoint's pickle may call: less than `weights_only` allows."""
CONSTANTS = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "GLOBAL", "BINGET", "LONG_BINGET"}
REFUSED = {
    "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID", "EXT1", "EXT2", "EXT4", "MEMOIZE", "PUT", "GET",
}  # fmt: skip
"""Opcodes that `torch.save` does not write and that could hide a name."""


def check_archive(path: Path) -> None:
    """Raise a UserError unless the file is a whole PyTorch archive of tensors and plain values.

    Every record has the checksum that was written with it (CRC-32), none is compressed (so that reading takes no more
    memory than the file is long), the pickle names nothing but tensors, and no tensor reaches beyond its record:
    PyTorch itself checks neither checksums nor sizes.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(_no_archive(path))
    try:
        _check_records(path)
    except UserError:
        raise
    except Exception as error:  # zipfile and pickletools raise what the bytes happen to lead to
        raise UserError(
            f"{path}: truncated or no checkpoint: {printable(str(error)[:150]) or type(error).__name__}"
        ) from error


def printable(value: Any) -> str:
    """A value from a file as text that neither breaks a line nor writes over the terminal."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def _no_archive(path: Path) -> str:
    with path.open("rb") as file:
        begins = file.read(2)
    if begins[:1] == pickle.PROTO:
        return f"{path}: refused, a plain pickle could run code when loaded"
    return f"{path}: truncated or no checkpoint: the archive's end is missing"


def _check_records(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise UserError(f"{path}: refused, the file holds compressed records; PyTorch writes none")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise UserError(f"{path}: truncated or no checkpoint: its records are longer than the file")
        damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"{path}: damaged, the checksum of its record {printable(damaged)} does not fit")
        sizes = {record.filename.partition("/")[2]: record.file_size for record in records}
        pickles = [record for record in records if record.filename.partition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or len(sizes) != len(records):
            raise UserError(f"{path}: truncated or no checkpoint: expected one data.pkl and no record twice")
        _check_pickle(path, archive.read(pickles[0]), sizes)


def _check_pickle(path: Path, data: bytes, sizes: dict[str, int]) -> None:
    for name, tensor in _calls(data):
        if name is not None and name not in ALLOWED:
            raise UserError(
                f"{path}: refused, the file holds more than tensors and plain values and could run code when loaded "
                f"({printable(name)})"
            )
        if tensor == []:
            raise UserError(f"{path}: refused, a tensor is not described as PyTorch does")
        if tensor:
            marker, storage, key, _, count = tensor
            width = STORAGES[storage.removeprefix("torch ").removesuffix("Storage")]
            if marker != "storage" or count * width != sizes[f"data/{key}"]:
                raise UserError(f"{path}: damaged, tensor {printable(key)} is not as long as its record")


def _calls(data: bytes) -> Iterator[tuple[str | None, list[Any] | None]]:
    """Every name that the pickle asks for, and the five constants that describe each of its tensors.

    A tensor must be written as `torch.save` writes it: five constants, then the tuple of them; anything else could
    mean another tensor to the unpickler than to this reader.
    """
    memo: dict[int, Any] = {}
    recent: list[tuple[str, Any]] = []  # opcodes with what they push
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in REFUSED:
            yield opcode.name, None
        elif opcode.name == "GLOBAL":
            yield argument, None
        elif opcode.name == "BINPERSID":
            kinds = [kind for kind, _ in recent[-7:]]
            described = (
                kinds[:1] == ["MARK"] and kinds[6:] == ["TUPLE"] and all(kind in CONSTANTS for kind in kinds[1:6])
            )
            yield None, [value for _, value in recent[-6:-1]] if described else []
        if opcode.name in ("BINPUT", "LONG_BINPUT"):
            # what is no constant, or was put later, is not looked up again where a tensor is described
            memo[cast(int, argument)] = recent[-1][1] if recent else None
        else:
            looked_up = opcode.name in ("BINGET", "LONG_BINGET")
            constant = memo.get(cast(int, argument)) if looked_up else argument
            recent = [*recent[-7:], (opcode.name, constant)]
