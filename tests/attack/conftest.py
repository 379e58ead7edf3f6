"""A base that is read once: what is under attack are the files around it."""

import copy
import functools
from pathlib import Path

import pytest

from lora_pl.model import base
from tests.support import run_in_process


@pytest.fixture(scope="session")
def in_place(tiny_encoder, glue_folder, tmp_path_factory) -> Path:
    """best.ckpt of a tiny run that trains biases and norms too."""
    cwd = tmp_path_factory.mktemp("in_place")
    arguments = ["--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--run_name", "tiny"]
    arguments += ["--model.train_biases", "all", "--model.train_norms", "true", "--trainer.max_epochs", "1"]
    run_in_process(["fit", *arguments], cwd, check=True)
    return cwd / "checkpoints" / "tiny" / "best.ckpt"


@pytest.fixture
def one_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders are copies of what was read before; tokenizers and fingerprints are those of the first."""
    load_encoder = functools.cache(base.load_encoder)
    fingerprints = functools.cache(lambda name: base_fingerprints(name, load_encoder(name), load_tokenizer(name)))
    base_fingerprints, load_tokenizer = base.base_fingerprints, functools.cache(base.load_tokenizer)
    monkeypatch.setattr(base, "load_encoder", lambda name, dropout=None: copy.deepcopy(load_encoder(name, dropout)))
    monkeypatch.setattr(base, "load_tokenizer", load_tokenizer)
    monkeypatch.setattr(base, "base_fingerprints", lambda name, encoder, tokenizer: fingerprints(name))
