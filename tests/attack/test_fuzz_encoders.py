"""Folders of encoders: an error or an encoder; none of their code runs, and nothing asks at the terminal."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel

from lora_pl.data.tokens import tokenize
from lora_pl.encoder.fingerprint import vocabulary_fingerprint
from lora_pl.encoder.loading import load_encoder, load_tokenizer
from tests.attack.fuzzing import counts, fuzz, told
from tests.attack.mutations import SLOW, changed_bytes, changed_values
from tests.support import tiny_config, tiny_tokenizer

CODE = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoTokenizer": ["code.Tokenizer", None]}
OF_CONFIG = [CODE, "gpt2", "bert", "decoy", "gelu", "relu", ["RobertaModel"], "float16", {"0": "a"}, 1 << 16, 17]
KEYS = ["auto_map", "is_decoder", "num_hidden_layers", "hidden_size", "pad_token_id", "quantization_config",
        "attn_implementation", "_attn_implementation", "tokenizer_class", "model_type", "dtype"]  # fmt: skip
OF_TOKENIZER = [CODE, "BertTokenizer", "PreTrainedTokenizerFast", "decoy.Tokenizer", {"type": "Sequence"}, "Left",
                {"Regex": SLOW}, {"<s>": 1 << 40}, "{{ 1 }}", 1 << 40, [["a", "b"]], [["a", -1.0]]]  # fmt: skip
FILES = {"config.json": (OF_CONFIG, KEYS), "tokenizer_config.json": (OF_TOKENIZER, ["auto_map", "tokenizer_class"]),
         "tokenizer.json": (OF_TOKENIZER, ["type", "vocab"])}  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    """A smallest encoder, beside code that its configuration may name."""
    AutoModel.from_config(tiny_config("roberta", num_hidden_layers=1)).save_pretrained(tmp_path)
    tiny_tokenizer("roberta").save_pretrained(tmp_path)
    (tmp_path / "code.py").write_text("class Config: pass\nModel = Tokenizer = Config\n")
    return tmp_path


def read_tokenizer(name: str) -> None:
    tokenizer = load_tokenizer(name)
    vocabulary_fingerprint(tokenizer)
    tokenize(tokenizer, [["a fine film"]], 8)


@counts
@pytest.mark.parametrize("name", FILES)
def test_settings(name, count, folder):
    """A tokenizer as far as tokens, an encoder as far as its weights."""
    path = folder / name
    load = load_encoder if name == "config.json" else read_tokenizer

    def check(settings: Any) -> None:
        path.write_text(json.dumps(settings))
        told(load, str(folder))

    fuzz(count, changed_values(json.loads(path.read_text()), *FILES[name]), check)


@counts
@pytest.mark.parametrize("name", [*FILES, "model.safetensors"])
def test_bytes(name, count, folder):
    path = folder / name
    load = load_encoder if name in ("config.json", "model.safetensors") else read_tokenizer

    def check(content: bytes) -> None:
        path.write_bytes(content)
        told(load, str(folder))

    fuzz(count, changed_bytes(path.read_bytes()), check)
