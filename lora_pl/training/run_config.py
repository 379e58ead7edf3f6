"""A run's record: configuration, versions and git state."""

from __future__ import annotations

import inspect
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from lora_pl.callbacks.tensorboard import tensorboard_loggers
from lora_pl.model.versions import versions
from lora_pl.storage.settings import FROM_DATA, FROM_MODEL
from lora_pl.storage.write_whole import remove_unfinished, write_text_whole

CONFIG = "config.yaml"
RUN_KEY = "lora_pl_run"
"""A checkpoint's key of the record: `{"config", "seed", "versions", "git"}`."""

Configuration = dict[str, Any]
"""Plain values in the layout of `lora_pl fit --config`."""


class RunConfig(Callback):
    """Writes the record into `config.yaml` in `folder`, if there is one, TensorBoard and every checkpoint."""

    def __init__(
        self, configuration: Callable[[LightningModule, LightningDataModule | None], Configuration], folder: Path | None
    ) -> None:
        self.configuration, self.folder = configuration, folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration, and keep the record for checkpoints."""
        found = self.configuration(pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True)
        seed = int(found.get("seed_everything") or 0)
        self._record = {"config": text, "seed": seed, "versions": versions(), "git": git_state()}
        if trainer.is_global_zero:
            made_with = {**self._record["versions"], "git": self._record["git"]}
            commented = "".join(f"# {name} {value}\n" for name, value in made_with.items()) + text
            for logger in tensorboard_loggers(trainer):
                logger.experiment.add_text("config", f"```yaml\n{commented}\n```")
            if self.folder is not None:
                path = self.folder / CONFIG
                remove_unfinished(path)  # of a run that was killed
                write_text_whole(path, commented)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the record."""
        checkpoint[RUN_KEY] = self._record


def configuration_of(
    model: LightningModule, data: LightningDataModule | None, trainer_options: Mapping[str, Any]
) -> Configuration:
    """The configuration with which `lora_pl fit` makes this model, these data and this trainer.

    It leaves out those of the trainer's options that are objects, and data that are given as loaders.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(Trainer).parameters.items()}
    of_data = data.hparams if data else {}
    return {
        "seed_everything": of_data.get("seed", 0),
        "trainer": {name: _plain(value) for name, value in {**defaults, **trainer_options}.items() if _is_plain(value)},
        "model": {name: _plain(value) for name, value in model.hparams.items() if name not in FROM_DATA},
        "data": {name: _plain(value) for name, value in of_data.items() if name not in FROM_MODEL},
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _plain(value: Any) -> Any:
    """Tuples as lists, as YAML reads them back."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, list | tuple) else value


@cache
def git_state() -> str:
    """The commit of the package's checkout, with `+changes` if files differ from it; `none` outside a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # fails if the package was installed inside another repository
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", "..") else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"
