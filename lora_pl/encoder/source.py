"""Where an encoder comes from: a hub name, a folder, or a folder inside an installed package."""

import os
from importlib.util import find_spec
from pathlib import Path

from lora_pl.errors import UserError
from lora_pl.storage.paths import expanded

PACKAGE_SCHEME = "package://"
GIVEN_BY = "--model.encoder (import and predict --adapter: --encoder; in Python encoder=)"
"""How a user names the encoder for a file that names another."""


def canonical_name(name: str) -> str:
    """The name as a checkpoint stores it: a folder's absolute path, any other name as it is."""
    return os.path.realpath(_path(name)) if is_folder_name(name) else name


def local_path(name: str) -> str:
    """What Transformers' `from_pretrained` takes for `name`: a folder's path or the hub's name.

    Raises:
        UserError: model.encoder: the folder or the package is missing, holds no `config.json`, or holds an adapter.
    """
    if name.startswith(PACKAGE_SCHEME):
        folder = _package_folder(name)
    elif is_folder_name(name):
        folder = _path(name)
    else:
        return name
    if not os.path.isfile(folder / "config.json"):
        what = "has no config.json" if os.path.isdir(folder) else "is no folder"
        raise UserError(
            "model.encoder",
            f"{name} {what}; expected a hub name such as roberta-base, a folder written by save_pretrained, or "
            f"{PACKAGE_SCHEME}NAME/PATH; if a checkpoint's encoder has moved, give it: {GIVEN_BY}",
        )
    if os.path.exists(folder / "adapter_config.json"):  # Transformers would put the adapter into the encoder
        raise UserError("model.encoder", f"{name} holds an adapter of PEFT; import it by lora_pl import")
    return str(folder)


def is_folder_name(name: str) -> bool:
    """Whether the name can only be a folder's, or such a folder exists."""
    if name.startswith(PACKAGE_SCHEME):
        return False
    # hub names are `name` or `owner/name`
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or os.path.isdir(_path(name))


def require_own_package(name: str) -> None:
    """Raise a UserError, `model.encoder`: a file names an encoder inside another package than lora_pl.

    A file may name a folder or a hub name, which are data; which packages are looked into is the user's to say.
    """
    if name.startswith(PACKAGE_SCHEME) and not name.startswith(f"{PACKAGE_SCHEME}lora_pl/"):
        raise UserError(
            "model.encoder",
            f"the file names an encoder inside a package, {name}; if you trust it, give it yourself: {GIVEN_BY}",
        )


def _package_folder(name: str) -> Path:
    """The folder, which lies inside the package's own; the package is located, not imported."""
    package, _, path = name.removeprefix(PACKAGE_SCHEME).partition("/")
    roots = [Path(os.path.realpath(root)) for root in _package_roots(package)]
    if not roots:
        raise UserError("model.encoder", f"{name} names the package {package!r}, which is not installed here")
    found = [(root, Path(os.path.realpath(root / _path(path)))) for root in roots]
    inside = [folder for root, folder in found if folder.is_relative_to(root)]
    if not inside:
        raise UserError("model.encoder", f"{name} leads out of the package {package}")
    return next(filter(os.path.isdir, inside), inside[0])


def _package_roots(package: str) -> list[str]:
    """The folders of an installed package; of several where it is a namespace."""
    if not package.isidentifier():  # to find a.b, Python would import a
        return []
    try:
        spec = find_spec(package)
    except ValueError:  # __main__
        return []
    return list((spec and spec.submodule_search_locations) or ())


def _path(name: str) -> Path:
    """The path; a UserError for what can be none."""
    try:
        if "\0" in name or len(name) > 1000:
            raise ValueError("it has a NUL or more than 1,000 characters")
        name.encode()
        return expanded(name)
    except ValueError as error:
        raise UserError("model.encoder", f"{name[:100]!r} is no path: {error}") from None
