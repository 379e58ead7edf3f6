"""Reading PyTorch files without running code from them."""

from __future__ import annotations

import io
import itertools
import pickle
import pickletools
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from lora_pl.errors import UserError, first_line

CALLED = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
"""The only functions that a file may call; `weights_only` allows more, such as `bytearray`, which fills memory."""
MAX_DEPTH, MAX_VALUES = 32, 1_000_000
"""The deepest nesting of dicts and lists, and the number of values in all."""
LONGEST_NAME = 1000
"""Characters of a tensor's name."""
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NUMBERS = (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)
END, LOCATOR, END64 = 22, 20, 56
"""Bytes of a zip's last records: the end of its directory, the locator of the zip64 end, and that end."""


def read_archive(path: Path, kind: str = "checkpoint") -> Any:
    """The content of a file of `torch.save`, on the CPU: tensors and plain values in dicts, lists and tuples.

    `torch.load(weights_only=True)` runs no code and lets no tensor reach beyond its record. The same bytes are checked
    for more: every record matches its CRC-32, none is compressed (so reading takes no more memory than the file's
    size), no tensor is sparse, on the meta device or expanded beyond its storage, and nesting is bounded.

    Raises:
        UserError: `KIND.missing`, `KIND.damaged` (empty and truncated files too) or `KIND.refused`.
    """
    if not path.is_file():
        raise UserError(f"{kind}.missing", f"{path}: no such {kind}{_meant_instead(path)}")
    data = path.read_bytes()
    if not data:
        raise UserError(f"{kind}.damaged", f"{path}: the file is empty")
    if data[:1] == pickle.PROTO:
        raise UserError(f"{kind}.refused", f"{path}: a plain pickle could run code; write it by torch.save")
    try:
        reason = _why_refused(data)
        content = None if reason else torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        reason = reason or _why_not_plain(content)
    except Exception as error:  # zipfile, pickletools and the unpickler raise what the bytes happen to lead to
        raise UserError(f"{kind}.damaged", f"{path}: truncated or no {kind}: {first_line(error)[:150]}") from error
    if reason:
        raise UserError(f"{kind}.refused", f"{path}: refused, {reason}")
    return content


def require_finite(
    source: str, tensors: Mapping[str, Any], kind: str, dtypes: Collection[torch.dtype] = FLOATS
) -> None:
    """Raise a UserError, `KIND.damaged`, that names what is no tensor of these types, or holds inf or NaN."""
    for name, tensor in tensors.items():
        if not isinstance(name, str) or len(name) > LONGEST_NAME:
            raise UserError(f"{kind}.damaged", f"{source}: {str(name)[:60]} is no name of a tensor")
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in dtypes:
            raise UserError(f"{kind}.damaged", f"{source}: {name} is no tensor of numbers")
        if not tensor.isfinite().all():
            raise UserError(f"{kind}.damaged", f"{source}: {name} holds inf or NaN")


def _meant_instead(path: Path) -> str:
    """The checkpoints of the folder that was given, or of the missing file's."""
    if (path / "best.ckpt").is_file():
        return f" but a folder; give {path / 'best.ckpt'}"
    there = sorted(other.name for other in path.parent.glob("*.ckpt") if other.is_file())
    return f"; in {path.parent} there is {', '.join(there)}" if there else ""


def _why_refused(data: bytes) -> str:
    """Why the zip or its pickle is refused, or nothing; damage raises zipfile's error or a ValueError."""
    _require_one_directory(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            return "the file holds compressed records; PyTorch writes none"
        names = [record.filename.partition("/")[2] for record in records]
        if names.count("data.pkl") != 1 or len(set(names)) != len(names):
            raise ValueError("expected one data.pkl and no record twice")
        if min(record.header_offset for record in records) or sum(record.file_size for record in records) > len(data):
            raise ValueError("its records are not those of the file")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"damaged, the checksum of its record {damaged} does not fit")
        called = _called(archive.read(records[names.index("data.pkl")]))
    strange = next((name for name in called if name not in CALLED and not _is_storage(name)), None)
    if strange is None:
        return ""
    return f"the file holds more than tensors and plain values and could run code when loaded ({strange})"


def _require_one_directory(data: bytes) -> None:
    """Raise a ValueError where PyTorch's zip reader and Python's could find different directories."""
    if data[:4] != b"PK\3\4" or data[-END:][:4] != b"PK\5\6":
        raise ValueError("the archive's beginning or end is missing")
    locator = data[-END - LOCATOR : -END]
    if locator[:4] == b"PK\6\7" and int.from_bytes(locator[8:16], "little") != len(data) - END - LOCATOR - END64:
        raise ValueError("the archive's end is not where it says")


def _called(data: bytes) -> Iterable[str]:
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            yield str(argument)
        elif opcode.name in ("STACK_GLOBAL", "INST"):
            yield opcode.name


def _is_storage(name: str) -> bool:
    module, _, kind = name.partition(" ")
    return module in ("torch", "torch.storage") and kind.endswith("Storage")


def _why_not_plain(content: Any) -> str:
    level, count = [content], 1
    for _ in range(MAX_DEPTH):
        if not all(map(_is_plain, level)):
            return "the file holds more than tensors and plain values"
        inner = itertools.chain.from_iterable(map(_inside, level))
        level = list(itertools.islice(inner, MAX_VALUES))
        count += len(level)
        if not level:
            return ""
        if count > MAX_VALUES:
            break
    return f"its values are nested deeper than {MAX_DEPTH} or are more than {MAX_VALUES:,}"


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return itertools.chain(value.keys(), value.values())
    return value if isinstance(value, list | tuple) else ()


def _is_plain(value: Any) -> bool:
    if isinstance(value, int):
        return value.bit_length() <= 64
    if not isinstance(value, torch.Tensor):
        return value is None or isinstance(value, str | float | bytes | dict | list | tuple)
    # an expanded tensor takes no memory until it is copied
    dense = value.layout is torch.strided and not value.is_meta
    return dense and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
