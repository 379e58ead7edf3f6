"""Where an encoder comes from: a hub name, a folder, or a folder inside an installed package."""

from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from lora_pl.errors import UserError

PACKAGE_SCHEME = "package://"


def canonical_name(name: str) -> str:
    """The name as a checkpoint stores it: a folder's absolute path, any other name as it is."""
    return str(Path(name).expanduser().resolve()) if is_folder_name(name) else name


def local_path(name: str) -> str:
    """What Transformers' `from_pretrained` takes for `name`: a folder's path or the hub's name.

    Raises:
        UserError: model.encoder: the folder or the package is missing, or holds no `config.json`.
    """
    if name.startswith(PACKAGE_SCHEME):
        folder = _package_folder(name)
    elif is_folder_name(name):
        folder = Path(name).expanduser()
    else:
        return name
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is no folder"
        raise UserError(
            "model.encoder",
            f"{name} {what}; expected a hub name such as roberta-base, a folder written by save_pretrained, or "
            f"{PACKAGE_SCHEME}NAME/PATH",
        )
    return str(folder)


def is_folder_name(name: str) -> bool:
    """Whether the name can only be a folder's, or such a folder exists."""
    if name.startswith(PACKAGE_SCHEME):
        return False
    # hub names are `name` or `owner/name`
    return Path(name).is_dir() or name.startswith((".", "/", "~")) or name.count("/") > 1


def _package_folder(name: str) -> Path:
    package, _, path = name.removeprefix(PACKAGE_SCHEME).partition("/")
    if not package.isidentifier() or find_spec(package) is None:
        raise UserError("model.encoder", f"{name} names the package {package!r}, which is not installed here")
    return Path(str(resources.files(package))) / path
