"""lora_pl's own adapter folder: adapters and head in fp32 and what rebuilds the rest, without the base."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from lora_pl import __version__
from lora_pl.data.texts import Text
from lora_pl.errors import UserError
from lora_pl.formats.export import Export
from lora_pl.formats.external import parse_safetensors, require_finite
from lora_pl.formats.model_card import RECORD, write_record
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.storage.checkpoint import BASE_KEY, check_base

WEIGHTS = "adapter.safetensors"


class AdapterExport(Export):
    """`adapter.safetensors` and `lora_pl.json`; `lora_pl import` makes a checkpoint of them."""

    name: ClassVar[str] = "adapter"

    def require_representable(self) -> None:
        """Refuse full fine-tuning, which has no adapter."""
        if self.model.hparams["method"] == "full":
            raise UserError("format", "the whole encoder was trained (method: full), there is no adapter; take hf")

    @property
    def reader(self) -> str:
        """This package."""
        return f"lora_pl {__version__}"

    @property
    def usage(self) -> str:
        """On the command line."""
        return (
            "from lora_pl.formats.native import read_adapter_folder\n\n"
            'model = read_adapter_folder("{folder}")\nmodel.predict(["A fine film."])'
        )

    def write(self, folder: Path) -> None:
        """Write tensors and settings."""
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}, folder / WEIGHTS)
        write_record(folder, self, {})

    def logits(self, folder: Path, texts: Sequence[Text]) -> Tensor:
        """By `read_adapter_folder`."""
        return read_adapter_folder(folder, base_dtype="float32").logits(texts)


def read_adapter_folder(folder: str | Path, **overrides: Any) -> LoRAClassifier:
    """The model of an `adapter` export, on the CPU, in eval mode.

    Args:
        folder: What `lora_pl export --format adapter` wrote.
        overrides: Constructor arguments to change, such as `encoder` where the base has moved.

    Raises:
        UserError: the folder is damaged, or the base is not the one that the adapter was trained on.
    """
    files = {name: Path(folder) / name for name in (WEIGHTS, RECORD)}
    for path in files.values():
        if not path.is_file():
            raise UserError("import.file", f"{path}: no such file; expected an export of --format adapter")
    return model_of_files({name: path.read_bytes() for name, path in files.items()}, str(folder), **overrides)


def model_of_files(files: Mapping[str, bytes], source: str, **overrides: Any) -> LoRAClassifier:
    """`read_adapter_folder` on the files' contents."""
    record = parse_record(files[RECORD], source)
    state = parse_safetensors(files[WEIGHTS], source)
    require_finite(source, state)
    try:
        model = LoRAClassifier(**{**record["hyper_parameters"], **overrides})
    except TypeError as error:
        raise UserError("import.damaged", f"{source}: {RECORD} is damaged or of another version: {error}") from error
    check_base({BASE_KEY: record["base"]}, model.base.fingerprints)
    model.load_state_dict(state)
    return model.eval()


def parse_record(data: bytes, source: str) -> dict[str, Any]:
    """The content of `lora_pl.json`."""
    try:
        record = json.loads(data)
        if {"hyper_parameters", "base", "format"} <= record.keys():
            return dict(record)
    except (ValueError, AttributeError):
        pass
    raise UserError("import.damaged", f"{source}: {RECORD} is damaged; expected what lora_pl export wrote")
