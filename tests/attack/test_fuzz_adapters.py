"""Adapters that other programs, or hostile hands, have written: an error that says what is wrong, or a model."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lora_pl.formats import native, peft_folder
from lora_pl.formats.external import read_tensors
from lora_pl.formats.importing import ImportOptions, load_external
from lora_pl.formats.model_card import RECORD
from tests.attack.fuzzing import counts, fuzz, told
from tests.attack.mutations import SLOW, changed_bytes, changed_values
from tests.attack.test_fuzz_checkpoints import TENSORS
from tests.support import run_in_process

OF_PEFT = [
    "LORA",
    "SEQ_CLS",
    "all-linear",
    "query",
    "classifier",
    SLOW,
    8,
    {"query": 8},
    {".*query": 4.7},
    [0],
    "layer",
]
HARM = (
    b'"F64"',
    b'"BF16"',
    b"9" * 20,
    b"-1",
    b"[0]",
    b"[]",
    b"null",
    b'"U8"',
    b"{",
    b"}",
    b'"__metadata__":{}',
    b"\x00",
)


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """An export of the format: `folder("peft")`."""

    def export(kind: str) -> Path:
        output = tmp_path_factory.mktemp(kind) / "export"
        arguments = ["--ckpt_path", str(checkpoint), "--format", kind, "--output", str(output)]
        run_in_process(["export", *arguments], output.parent, check=True)
        return output

    return export


@counts
def test_safetensors(count, folder, tmp_path):
    path, valid = tmp_path / "x.safetensors", (folder("adapter") / native.WEIGHTS).read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        told(read_tensors, path)

    fuzz(count, changed_bytes(valid, HARM), check)


@counts
def test_safetensors_headers(count, folder, tmp_path):
    path, valid = tmp_path / "x.safetensors", (folder("adapter") / native.WEIGHTS).read_bytes()
    end = 8 + struct.unpack("<Q", valid[:8])[0]

    def check(header: Any) -> None:
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + valid[end:])
        told(read_tensors, path)

    fuzz(count, changed_values(json.loads(valid[8:end]), ["F32", "F8_E4M3", "I64", [1 << 40], [0, 1 << 40]]), check)


@counts
@pytest.mark.parametrize(("kind", "name"), [("adapter", RECORD), ("peft", RECORD), ("peft", peft_folder.CONFIG)])
def test_settings(kind, name, count, folder):
    """The JSON beside the tensors, as far as the model and a text's prediction."""
    exported = folder(kind)
    path = exported / name

    def load() -> None:
        load_external(exported).predict(["a fine film"])

    def check(settings: Any) -> None:
        path.write_text(json.dumps(settings))
        told(load)

    fuzz(count, changed_values(json.loads(path.read_text()), OF_PEFT, ["r", "lora_alpha", "use_dora"]), check)


@counts
def test_tensors_of_peft(count, in_place, tmp_path):
    """Names, shapes and types of well-formed tensors: adapters, biases, norms and the head."""
    arguments = ["--ckpt_path", str(in_place), "--format", "peft", "--output", "x"]
    run_in_process(["export", *arguments], tmp_path, check=True)
    path = tmp_path / "x" / peft_folder.WEIGHTS
    valid = load_file(path)

    def load() -> None:
        load_external(tmp_path / "x").predict(["a fine film"])

    def check(state: Any) -> None:
        try:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        except (ValueError, TypeError, AttributeError, RuntimeError, SafetensorError):
            assume(False)  # no safetensors file can hold that
        told(load)

    # an expanded tensor would be written in full
    tensors = [value for value in TENSORS if not isinstance(value, torch.Tensor) or value.numel() < 1 << 20]
    copies = [name.replace(f".{module}.", f".{module}.{wrapper}.") for name in valid
              for module, wrapper in (("classifier", "original_module"), ("LayerNorm", "modules_to_save"))]  # fmt: skip
    fuzz(count, changed_values(valid, tensors, [*valid, *copies]), check)


@counts
@pytest.mark.parametrize("layout", ["loralib", "loralib with biases", "original"])
def test_state_dicts(layout, count, tiny_encoder, tmp_path):
    path, (a, b) = tmp_path / "x.pt", ("A", "B") if layout == "original" else ("lora_A", "lora_B")
    layers = [f"roberta.encoder.layer.{i}.attention.self.{role}" for i in (0, 1) for role in ("query", "value")]
    state = {f"{layer}.{a}": torch.randn(4, 16) for layer in layers}
    state |= {f"{layer}.{b}": torch.randn(16, 4) for layer in layers}
    if layout == "loralib with biases":
        state |= {f"{layer}.bias": torch.randn(16) for layer in layers}
    state |= {"classifier.weight": torch.randn(2, 16), "classifier.bias": torch.randn(2)}
    config = {"model": tiny_encoder(), "task": "SST-2", "r": 4, "alpha": 8, "max_length": 32}
    valid = {"lora": state, "config": config, "metrics": {}} if layout == "original" else state
    options = ImportOptions(tiny_encoder(), None if layout == "original" else 8.0)

    def load() -> None:
        load_external(path, options).predict(["a fine film"])

    def check(content: Any) -> None:
        torch.save(content, path)
        told(load)

    fuzz(count, changed_values(valid, TENSORS, list(state)), check)
