"""How Lightning reads and writes checkpoint files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from lora_pl.storage.archive import read_archive
from lora_pl.storage.checkpoint import read_checkpoint, save_checkpoint

HANDED_BACK = ".temp.ckpt"
"""Lightning's name for a file in a temporary folder of its own (`ddp_spawn`)."""


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints by `save_checkpoint` and reads them by `read_checkpoint`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: dict[str, str] | None = None
    ) -> None:
        """Write `checkpoint` to `path`; `storage_options={"keep": OTHER}` renames the previous file to OTHER."""
        keep = (storage_options or {}).get("keep")
        save_checkpoint(checkpoint, Path(path), Path(keep) if keep else None)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint on the CPU, or the weights alone that a spawned process hands back."""
        return read_archive(Path(path)) if Path(path).name == HANDED_BACK else read_checkpoint(path)
