"""The README of an exported model: what it is and how it was made."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import TypedDict

from lora_pl.data.hub import PREFIX
from lora_pl.encoder.source import PACKAGE_SCHEME, is_folder_name
from lora_pl.formats.comparison import Comparison
from lora_pl.formats.export import Export
from lora_pl.lora import VARIANTS, lora_layers
from lora_pl.model.versions import versions
from lora_pl.printable import printable
from lora_pl.storage.checkpoint import DATA_KEY, SETTINGS_KEY, START_KEY
from lora_pl.storage.paths import public

RECORD = "lora_pl.json"
"""What the model was made of, for programs: settings, base, columns of the data, comparison, versions."""


class Columns(TypedDict, total=False):
    """The columns of a run's own data, as `SentenceData` names them."""

    text_column: str
    text_pair_column: str
    label_column: str
    label_columns: list[str]


OF_BIASES = {"none": "", "lora": "those of the adapted layers", "all": "all"}


def write_record(folder: Path, export: Export, checkpoint: dict[str, Any], comparisons: dict[str, Comparison]) -> None:
    """Write `lora_pl.json`."""
    model, data = export.model, checkpoint.get(DATA_KEY, {})
    settings = {**model.hparams, "start_from": public(model.hparams["start_from"] or "", 2) or None}
    if export.is_merged:  # else the base's own path is needed to load the folder
        settings["encoder"] = public(settings["encoder"])
    record = {
        "format": export.name,
        "base": {**model.base.fingerprints, "encoder": public(model.base.fingerprints["encoder"])},
        SETTINGS_KEY: settings,
        DATA_KEY: {name: data[name] for name in Columns.__annotations__ if data.get(name) is not None},
        "dtype": export.options.dtype,
        "comparisons": {name: asdict(comparison) for name, comparison in comparisons.items()},
        "versions": versions(),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def write_model_card(
    folder: Path, export: Export, checkpoint: dict[str, Any], made_by: str, comparisons: dict[str, Comparison]
) -> None:
    """Write `README.md` with the metadata that model hubs read."""
    sections = [
        _metadata(export),
        f"# {plain(_title(export))}\n",
        "## Use\n",
        f"```python\n{export.usage.replace('{folder}', 'THIS_FOLDER')}\n```\n",
        *export.notes,
        "## What it is\n",
        _table(_facts(export, checkpoint)),
        "## How it was made\n",
        f"{made_by}\n",
        "Loaded again and compared with the model in the checkpoint:\n",
        *(f"- {plain(f'{name}: {comparison}')}" for name, comparison in comparisons.items()),
        "",
        f"Made with {', '.join(f'{name} {number}' for name, number in versions().items())}.\n",
    ]
    (folder / "README.md").write_text("\n".join(sections), encoding="utf-8")


def _metadata(export: Export) -> str:
    encoder = export.model.hparams["encoder"]
    on_hub = not is_folder_name(encoder) and not encoder.startswith(PACKAGE_SCHEME)
    lines = ["---", "pipeline_tag: text-classification", f"library_name: {export.program}"]
    lines += [f"base_model: {json.dumps(encoder)}"] if on_hub else []  # JSON is YAML
    return "\n".join([*lines, "tags: [lora, lora_pl]", "---", ""])


def _title(export: Export) -> str:
    encoder = export.model.hparams["encoder"].rstrip("/").rpartition("/")[2]
    merged = " merged" if export.is_merged else ""
    variant = VARIANTS[export.model.hparams["lora"]["variant"]].__name__
    how = {"lora": f"{variant}{merged}", "head": "a head", "full": "fine-tuned"}[export.model.hparams["method"]]
    return f"{encoder} on {export.model.task.name}, {how}"


def _facts(export: Export, checkpoint: dict[str, Any]) -> dict[str, object]:
    settings = export.model.hparams
    lora, weights = settings["lora"], export.model.base.fingerprints["weights"]
    facts: dict[str, object] = {
        "base": f"{public(settings['encoder'])} (fingerprint of its weights {weights})",
        "task": settings["task"],
        "labels": ", ".join(settings["label_names"]) or "a score",
        "trained": {"lora": "LoRA and head", "head": "head alone", "full": "everything"}[settings["method"]],
    }
    if settings["method"] == "lora":
        adapters = [layer.adapter for layer in lora_layers(export.model.encoder).values()]
        facts |= {
            "variant": lora["variant"],
            "rank r": _by_layer(lora["r"], {adapter.r for adapter in adapters}),
            "alpha": _by_layer(lora["lora_alpha"], {adapter.lora_alpha for adapter in adapters}),
            "scaling": "alpha / sqrt(r) (rslora)" * (lora["scaling"] == "rslora"),
            "init of A": lora["init"],
            "adapted layers": f"{len(export.model.adapted)} ({_placement(lora)})",
            "trained biases": OF_BIASES[settings["train_biases"]],
            "trained norms": settings["train_norms"] and "all",
        }
    facts |= {"head": settings["head"], "longest text": f"{export.model.max_length} tokens"}
    if START_KEY in checkpoint:
        start = checkpoint[START_KEY]
        facts["started from"] = f"{public(start['checkpoint'], 2)} (SHA-256 {start['sha256']})"
    facts |= {"data": _data(checkpoint), **_best(checkpoint), "written as": export.options.dtype}
    return {name: value for name, value in facts.items() if value}


def _by_layer(setting: float, own: set[float] | set[int]) -> str:
    """The setting, and the layers' own values where they differ."""
    return f"{setting:g}" + f" (by layer: {', '.join(f'{value:g}' for value in sorted(own))})" * (own != {setting})


def _placement(lora: dict[str, Any]) -> str:
    blocks = f" in blocks {', '.join(map(str, lora['layers']))}" if lora["layers"] else ""
    excluded = f" without {', '.join(lora['exclude'])}" if lora["exclude"] else ""
    return ", ".join(lora["target_modules"]) + excluded + blocks


def _data(checkpoint: dict[str, Any]) -> str:
    data = checkpoint.get(DATA_KEY, {})
    place = str(data.get("train_file") or data.get("source") or "")
    path = place.removeprefix(PREFIX)
    return place.removesuffix(path) + public(path)


def _best(checkpoint: dict[str, Any]) -> dict[str, str]:
    """The best validation score of the run, where the checkpoint says it."""
    for state in checkpoint.get("callbacks", {}).values():
        score = state.get("best_model_score") if isinstance(state, dict) else None
        if isinstance(score, Tensor) and score.numel() == 1:
            return {f"best {state.get('monitor')} of the run": f"{score.item():.4f}"}
    return {}


def _table(facts: dict[str, object]) -> str:
    rows = [f"| {plain(name)} | {plain(value)} |" for name, value in facts.items()]
    return "\n".join(["| | |", "| --- | --- |", *rows, ""])


def plain(value: object) -> str:
    """Text, such as a label's name from a file, that Markdown and HTML show as it is."""
    return re.sub(r"([\\`*\[\]<>|&~])", r"\\\1", printable(str(value)))
