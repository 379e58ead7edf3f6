"""Paths as users write them."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with `~` and `~USER` as that home; a name of no user stays, where pathlib's own raises."""
    return Path(os.path.expanduser(path))
