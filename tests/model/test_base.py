"""A base is loaded once, without random numbers, and is the same whoever holds it."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from lora_pl import LoRAConfig
from lora_pl.model.base import Base
from lora_pl.model.classifier import LoRAClassifier
from tests.encoder.test_architectures import KINDS, WITH_HEAD
from tests.support import tiny_config, tiny_tokenizer

TEXTS = ["the film is good", "dull", "the plot is very slow and the cast is awful", "fine"]


def states():
    numpy = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), (numpy[1].tolist(), numpy[2])


@pytest.mark.parametrize("kind", WITH_HEAD)
@pytest.mark.parametrize("head", ["linear", "architecture"])
def test_loading_draws_no_random_number(kind, head, tiny_encoder):
    folder, before = tiny_encoder(kind), states()
    base = Base.load(folder, head=head)
    assert states() == before
    assert not any(parameter.requires_grad for parameter in base.encoder.parameters())
    assert base.encoder.training


def test_a_pooler_that_the_weights_lack_is_the_heads_to_draw(tmp_path):
    from transformers import AutoModel

    AutoModel.from_config(tiny_config("bert"), add_pooling_layer=False).save_pretrained(tmp_path)
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    before = states()
    base = Base.load(str(tmp_path), head="architecture")
    assert states() == before
    torch.manual_seed(3)
    drawn = base.new_head("architecture", 2).state_dict()
    torch.manual_seed(3)
    model = LoRAClassifier(encoder=str(tmp_path), head="architecture")
    assert all(torch.equal(tensor, drawn[name]) for name, tensor in model.head.state_dict().items())


def test_every_head_of_a_bert_starts_from_its_pooler(tiny_encoder):
    base = Base.load(tiny_encoder("bert"), head="architecture")
    one, other = (base.new_head("architecture", 2) for _ in range(2))
    assert torch.equal(one.dense.weight, other.dense.weight)
    assert one.dense.weight.data_ptr() != other.dense.weight.data_ptr()
    assert not torch.equal(one.out_proj.weight, other.out_proj.weight)
    assert not any("pooler" in name for name, _ in base.encoder.named_parameters())


def test_fingerprints_are_those_of_the_weights_as_loaded(tiny_encoder):
    expected = Base.load(tiny_encoder()).fingerprints
    base = Base.load(tiny_encoder())
    base.inject(LoRAConfig())
    base.cast(torch.bfloat16)
    nn.init.zeros_(next(base.encoder.parameters()))
    assert base.fingerprints == expected
    assert LoRAClassifier(encoder=tiny_encoder(), method="full", base_dtype="bfloat16").base.fingerprints == expected


def test_what_was_rounded_stays_and_what_is_trained_is_not_cast(tiny_encoder):
    base = Base.load(tiny_encoder())
    weight = base.encoder.get_parameter("encoder.layer.0.attention.self.query.weight")
    base.cast(torch.bfloat16)
    base.cast(torch.float32)
    assert (weight.dtype, base.dtype) == (torch.bfloat16, torch.bfloat16)
    whole = Base.load(tiny_encoder())
    whole.encoder.requires_grad_(True)
    whole.cast(torch.bfloat16)
    assert {p.dtype for p in whole.encoder.parameters()} == {torch.float32} == {whole.dtype}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_hold_every_text_once_within_their_budget(kind, tiny_encoder):
    base = Base.load(tiny_encoder(kind))
    base.encoder.eval()
    tokens = base.tokenize([TEXTS], 64)
    for budget in (20, 4096):
        packed = list(base.batches(tokens, budget))
        assert sorted(index for _, indices in packed for index in indices) == list(range(len(TEXTS)))
        assert all(batch.input_ids.numel() <= budget for batch, _ in packed)
        padded = {i: row for batch, indices in base.batches(tokens, budget, "padded")
                  for i, row in zip(indices, base.features(batch), strict=True)}  # fmt: skip
        for batch, indices in packed:
            expected = torch.stack([padded[index] for index in indices])
            torch.testing.assert_close(base.features(batch), expected, rtol=1e-5, atol=1e-6)
