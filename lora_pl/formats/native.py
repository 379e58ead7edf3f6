"""lora_pl's own adapter folder: adapters and head in fp32 and what rebuilds the rest, without the base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NotRequired

from torch import Tensor
from typing_extensions import TypedDict

from lora_pl.data.texts import Text
from lora_pl.errors import UserError
from lora_pl.formats.export import Export
from lora_pl.formats.external import parse_safetensors
from lora_pl.formats.model_card import RECORD, Columns
from lora_pl.model.plain import PlainClassifier
from lora_pl.model.stored import model_settings
from lora_pl.storage.archive import require_finite
from lora_pl.storage.checkpoint import BASE_KEY, DATA_KEY, SETTINGS_KEY, Fingerprints, check_base
from lora_pl.storage.schema import parse_json, require_json, require_values
from lora_pl.storage.settings import differing

WEIGHTS = "adapter.safetensors"
RENAMED = ("task", "label_names", "pairs")
"""Settings by which a user may rename what the folder says of its classes and its texts."""


class Record(TypedDict):
    """What is read of `lora_pl.json`."""

    format: str
    base: Fingerprints
    hyper_parameters: dict[str, Any]
    datamodule_hyper_parameters: NotRequired[dict[str, Any]]
    """`Columns`, if lora_pl trained it on own data."""


class AdapterExport(Export):
    """`adapter.safetensors` and `lora_pl.json`; `lora_pl import` makes a checkpoint of them."""

    name: ClassVar[str] = "adapter"
    program: ClassVar[str] = "lora_pl"
    is_merged: ClassVar[bool] = False

    def require_representable(self) -> None:
        """Refuse full fine-tuning too, which has no adapter."""
        super().require_representable()
        if self.model.hparams["method"] == "full":
            raise UserError("export.format", "method: full trains the whole encoder, no adapter; use --format hf")

    @property
    def usage(self) -> str:
        """By lora_pl."""
        return (
            "from lora_pl.formats.native import read_adapter_folder\n\n"
            'model = read_adapter_folder("{folder}")\n'
            f"model.predict({json.dumps([self.example])})"
        )

    def write(self, folder: Path) -> None:
        """Write the tensors."""
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}, folder / WEIGHTS)

    def logits(self, folder: Path, texts: Sequence[Text]) -> Tensor:
        """By `read_adapter_folder`."""
        return read_adapter_folder(folder, base_dtype="float32").logits(texts)


def read_adapter_folder(folder: str | Path, **overrides: Any) -> PlainClassifier:
    """The model of an `adapter` export, on the CPU, in eval mode.

    Args:
        folder: What `lora_pl export --format adapter` wrote.
        overrides: Constructor arguments to change, such as `encoder` if the base has moved.

    Raises:
        UserError: adapter.missing, adapter.damaged, adapter.settings or adapter.version; checkpoint.settings or
            checkpoint.base: the overrides or the base differ from what the adapter was trained with.
    """
    source, paths = str(folder), [Path(folder) / name for name in (WEIGHTS, RECORD)]
    for path in paths:
        if not path.is_file():
            raise UserError("adapter.missing", f"{path}: no such file; expected an export of --format adapter")
    weights, record = parse_safetensors(paths[0].read_bytes(), source), parse_record(paths[1].read_bytes(), source)
    require_finite(source, weights, "adapter")
    settings = record[SETTINGS_KEY]
    model = PlainClassifier.of_file(settings, overrides)
    differing(settings | {name: overrides[name] for name in RENAMED if name in overrides}, model.hparams)
    check_base({BASE_KEY: record["base"]}, model.base.fingerprints)
    model.load_state_dict(weights)
    return model.eval()


def parse_record(data: bytes, source: str) -> dict[str, Any]:
    """The content of `lora_pl.json`.

    Raises:
        UserError: adapter.damaged, adapter.settings or adapter.version.
    """
    where = f"{source}: {RECORD}"
    record = parse_json(data, "adapter.damaged", where)
    require_values(record, Record, "adapter.damaged", f"{where}: ")
    require_json(record.get(DATA_KEY, {}), Columns, "adapter.settings", f"{where}: data.")
    return {**record, SETTINGS_KEY: model_settings(record, where, "adapter")}


def recorded_columns(folder: Path) -> dict[str, Any]:
    """The `Columns` that the `lora_pl.json` of a folder names; none where there is no such file."""
    path = folder / RECORD
    return dict(parse_record(path.read_bytes(), str(folder)).get(DATA_KEY, {})) if path.is_file() else {}
