"""Files of a folder, or of an archive of one, read into memory: nothing is unpacked."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from lora_pl.errors import UserError

LIMIT = 4 * 1024**3
"""Bytes of a member, above which an archive is refused: adapters are small, and a small archive can unpack to much."""


def read_package(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """The contents of the files `names` that are there, at the top of a folder or anywhere in an archive.

    Raises:
        UserError: there is no such folder or file, an archive is damaged, or one of its members leads outside of it
            (a link, an absolute path, or `..`).
    """
    if path.is_dir():
        return {name: (path / name).read_bytes() for name in sorted(names) if (path / name).is_file()}
    if not path.is_file():
        raise UserError("import.file", f"{path}: no such file")
    try:
        found = list(_zip_files(path, names) if zipfile.is_zipfile(path) else _tar_files(path, names))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise UserError(
            "import.damaged", f"{path}: damaged or no zip or tar archive: {str(error).splitlines()[0]}"
        ) from error
    if len(dict(found)) < len(found):
        raise UserError("import.unknown", f"{path}: the archive holds several adapters; give one of them")
    return dict(found)


def _zip_files(path: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
            if _wanted(path, member.filename, is_link, member.file_size, names):
                yield PurePosixPath(member.filename).name, archive.read(member)


def _tar_files(path: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for member in archive:
            is_link = not (member.isfile() or member.isdir())
            if _wanted(path, member.name, is_link, member.size, names):
                file = archive.extractfile(member)
                if file is not None:
                    yield PurePosixPath(member.name).name, file.read()


def _wanted(path: Path, member: str, is_link: bool, size: int, names: Collection[str]) -> bool:
    place = PurePosixPath(member.replace("\\", "/"))
    if is_link or place.is_absolute() or ".." in place.parts:
        what = "a link or special file" if is_link else "a path that leads outside"
        raise UserError("import.unsafe", f"{path}: refused, the archive holds {what}: {member}")
    if place.name in names and size > LIMIT:
        raise UserError("import.unsafe", f"{path}: refused, {member} would take {size:,} bytes")
    return place.name in names
