"""The checkpoint to resume from, and the check that options are those of the saved run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.errors import UserError
from lora_pl.lora import LoRAConfig
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.reporting import say
from lora_pl.storage.checkpoint import newest_checkpoint
from lora_pl.storage.flat import flatten
from lora_pl.storage.paths import expanded
from lora_pl.storage.schema import defaults
from lora_pl.storage.yaml_file import read_options

HARMLESS = re.compile(
    r"config|run_name|ckpt_path|resume|force|save_every_.*|data\.(num_workers|cache_dir|test_file)|trainer\.(logger.*|"
    r"enable_.*|log_every_n_steps|profiler.*|default_root_dir|detect_anomaly|num_sanity_val_steps)"
)
"""Options that affect no weight and no metric."""
LENGTHS = re.compile(r"trainer\.(max|min)_(epochs|steps|time)")
"""Options that affect the length of a run alone, unless its schedule depends on it."""


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The newest whole checkpoint in a run's folder, None if it has none; damaged ones are reported.

    Raises:
        UserError: `checkpoint...`, the run has checkpoints and none is whole.
    """
    path, damaged = newest_checkpoint(folder)
    for problem in damaged:
        say(f"resume: {problem}")
    say(f"resume: {path}" if path else f"resume: {folder} has no checkpoint yet; the run starts")
    return path


def check_same_run(saved: Path, given: Mapping[str, Any]) -> None:
    """Raise a UserError, `resume`, with every option in which `given` differs from `saved`, a run's config.yaml."""
    if not saved.is_file():
        return
    # an option that the version of the saved run did not have yet has its default
    before, now = {**former_defaults(), **flatten(read_options(saved))}, flatten(given)
    depends_on_length = now.get("model.schedule") != "constant" or now.get("model.warmup_ratio")
    changed = [
        f"{key} (was {before[key]}, now {value})"
        for key, value in now.items()
        if key in before and not _same(before[key], value) and not HARMLESS.fullmatch(key)
        if depends_on_length or not LENGTHS.fullmatch(key)
    ]
    if changed:
        raise UserError(
            "resume",
            f"these options differ from the saved run: {', '.join(changed)}; leave them as they were, or add --force",
        )


def former_defaults() -> dict[str, Any]:
    """The options, by full name, with the values that they have in what an earlier version saved without them."""
    model, data = (defaults(made.__init__) for made in (LoRAClassifier, SentenceDataModule))
    own = {"early_stopping_patience": None}
    return flatten({"model": {**model, "lora": LoRAConfig().to_dict()}, "data": data, **own})


def _same(before: Any, now: Any) -> bool:
    """Whether two values are equal, or paths to the same place."""
    if isinstance(before, str) and isinstance(now, str):
        return expanded(before).resolve() == expanded(now).resolve()
    return bool(before == now)
