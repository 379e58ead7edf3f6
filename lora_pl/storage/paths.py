"""Paths as users write them."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with `~` and `~USER` as that home; a name of no user stays, where pathlib's own raises."""
    return Path(os.path.expanduser(path))


def public(path: str, names: int = 1) -> str:
    """What may be published of a path: the last names of an absolute one; anything else as it is."""
    return "/".join(Path(path).parts[-names:]) if os.path.isabs(path) else path
