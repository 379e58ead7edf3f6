"""A base that is read once: what is under attack are the files around it."""

import copy
import functools

import pytest

from lora_pl.model import base


@pytest.fixture
def one_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders are copies of what was read before; tokenizers and fingerprints are those of the first."""
    load_encoder = functools.cache(base.load_encoder)
    fingerprints = functools.cache(lambda name: base_fingerprints(name, load_encoder(name), load_tokenizer(name)))
    base_fingerprints, load_tokenizer = base.base_fingerprints, functools.cache(base.load_tokenizer)
    monkeypatch.setattr(base, "load_encoder", lambda name, dropout=None: copy.deepcopy(load_encoder(name, dropout)))
    monkeypatch.setattr(base, "load_tokenizer", load_tokenizer)
    monkeypatch.setattr(base, "base_fingerprints", lambda name, encoder, tokenizer: fingerprints(name))
