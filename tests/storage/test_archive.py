"""Files that PyTorch would read and that are refused, and files that other programs write and that are read."""

import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from lora_pl.errors import UserError
from lora_pl.storage.archive import read_archive

PLAIN = {"a": torch.arange(6.0).view(2, 3), "b": [1, 2.5, None, "text", (True,)], "empty": torch.zeros(0)}


def saved(content, path: Path) -> Path:
    torch.save(content, path)
    return path


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


def doubled(times: int) -> list:
    """2 ** times values from a list per doubling."""
    value: list = [0]
    for _ in range(times):
        value = [value, value]
    return value


def circle() -> list:
    value: list = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "content",
    [PLAIN, OrderedDict(PLAIN), torch.nn.Linear(2, 2).state_dict(), dict(torch.nn.Linear(2, 2).named_parameters()),
     {"views": list(torch.arange(6.0).view(2, 3))}, {"half": torch.ones(3, dtype=torch.bfloat16)}],
)  # fmt: skip
def test_tensors_and_plain_values_come_back(content, tmp_path):
    again = read_archive(saved(content, tmp_path / "x.pt"))
    assert list(again) == list(content)
    for key, value in content.items():
        assert torch.equal(again[key], value) if isinstance(value, torch.Tensor) else len(again[key]) == len(value)


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(1).expand(10**6),
        torch.eye(3).to_sparse(),
        torch.empty(10**12, device="meta"),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        bytearray(3),
        {1, 2},
        nested(100),
        doubled(60),
        circle(),
        {"a": {"b": (torch.zeros(1).expand(10**6),)}},
    ],
    ids=["expanded", "sparse", "meta", "quantized", "bytearray", "set", "deep", "doubled", "circle", "within"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_takes_memory_or_never_ends_is_refused(content, tmp_path):
    with pytest.raises(UserError) as error:
        read_archive(saved({"x": content}, tmp_path / "x.pt"))
    assert error.value.key in ("checkpoint.refused", "checkpoint.damaged")
    assert len(str(error.value)) < 500


def repacked(path: Path, other: Path, compression: int = zipfile.ZIP_STORED, **changes: bytes) -> Path:
    """The archive with records replaced, by their names' last part, and added."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(other, "w", compression) as made:
        for record in archive.infolist():
            made.writestr(record.filename, changes.pop(Path(record.filename).name, archive.read(record)))
        for name, content in changes.items():
            made.writestr(f"archive/{name}", content)
    return other


def test_a_repacked_archive_is_read(tmp_path):
    again = read_archive(repacked(saved(PLAIN, tmp_path / "x.pt"), tmp_path / "y.pt"))
    assert torch.equal(again["a"], PLAIN["a"])


@pytest.mark.filterwarnings("ignore")  # zipfile's, of a name that is there twice
@pytest.mark.parametrize("kind", ["compressed", "prefix", "suffix", "comment", "twice", "long", "short", "no pickle"])
def test_archives_that_two_readers_could_read_differently(kind, tmp_path):
    path, other = saved(PLAIN, tmp_path / "x.pt"), tmp_path / "y.pt"
    content = path.read_bytes()
    if kind == "compressed":
        repacked(path, other, zipfile.ZIP_DEFLATED)
    elif kind == "twice":
        repacked(path, other)
        with zipfile.ZipFile(other, "a") as archive:
            archive.writestr("other/data.pkl", b"\x80\x02N.")
    elif kind == "no pickle":
        with zipfile.ZipFile(other, "w") as archive:
            archive.writestr("archive/version", b"3")
    elif kind in ("long", "short"):
        repacked(path, other, **{"0": b"\0" * (4 if kind == "short" else 4000)})
    else:
        comment = content[:-2] + b"\2\0ab"
        other.write_bytes({"prefix": b"#!" + content, "suffix": content + b"\0", "comment": comment}[kind])
    with pytest.raises(UserError) as error:
        read_archive(other, "adapter")
    assert error.value.key in ("adapter.refused", "adapter.damaged")


def test_a_changed_byte_in_a_tensor_is_found(tmp_path):
    path = saved({"x": torch.full((1000,), 1.5)}, tmp_path / "x.pt")
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((4,), 1.5).numpy().tobytes()) + 400] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_archive(path)
    assert error.value.key == "checkpoint.damaged"
