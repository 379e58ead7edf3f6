"""What a run was made with."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from lora_pl import __version__
from lora_pl.storage.write_whole import write_whole
from lora_pl.training.resume.run_checkpoints import BestCheckpoint

CONFIG = "config.yaml"
RUN_KEY = "lora_pl_run"
"""Where a checkpoint says what made it: `{"config", "seed", "versions", "git"}`."""


class RunConfig(SaveConfigCallback):
    """Writes the run's whole configuration, versions and git state beside its checkpoints, into TensorBoard and into
    every checkpoint."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called once, by the first process."""
        made_with = "".join(f"# {name} {value}\n" for name, value in {**versions(), "git": git_state()}.items())
        text = made_with + config_text(self.parser, self.config)
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_text("config", f"```yaml\n{text}\n```")
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, BestCheckpoint):
                path = Path(str(checkpoint.dirpath)) / CONFIG
                write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration, and keep the record for the checkpoints."""
        super().setup(trainer, pl_module, stage)
        self._record = {
            "config": config_text(self.parser, self.config),
            "seed": int(self.config.get("seed_everything") or 0),
            "versions": versions(),
            "git": git_state(),
        }

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the record."""
        checkpoint[RUN_KEY] = self._record


def config_text(parser: Any, config: Any) -> str:
    """The configuration as YAML, every option with its value."""
    return str(parser.dump(config, skip_unset=False))


def versions() -> dict[str, str]:
    """The versions of what the numbers depend on."""
    libraries = ("torch", "lightning", "transformers", "numpy")
    return {"lora_pl": __version__, "python": sys.version.split()[0], **{name: version(name) for name in libraries}}


def git_state() -> str:
    """The commit of the package's checkout, with `+changes` where files differ from it; `none` outside of one."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # a package that lies in somebody else's repository is none of its files
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", "..") else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"
