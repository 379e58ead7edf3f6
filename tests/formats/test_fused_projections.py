"""Updates of fused layers, whole and in parts."""

import pytest
import torch
from torch import nn

from lora_pl.encoder.architectures import ARCHITECTURES, architecture_of, module_names
from lora_pl.encoder.fused import split_fused
from lora_pl.encoder.loading import load_encoder
from lora_pl.formats.fused_projections import Update, join_updates, split_updates
from lora_pl.lora import LoRAConfig, inject_lora, lora_layers
from tests.encoder.test_architectures import TERMS
from tests.encoder.test_fused import FUSED, block
from tests.support import rounding

WITH_FUSED = [kind for kind, row in ARCHITECTURES.items() if row.fused]
IDS = torch.tensor([[0, 5, 6, 7, 9, 11, 2]])


def update(r: int, alpha: float) -> Update:
    return Update(torch.randn(r, 5), torch.randn(4, r), alpha)


def delta(one: Update) -> torch.Tensor:
    return one.scaling * one.b @ one.a


@pytest.mark.parametrize(
    "parts",
    [
        {"q": update(2, 4.0), "v": update(2, 4.0)},
        {"q": update(1, 3.0), "k": update(4, 12.0), "v": update(2, 6.0)},
        {"k": update(3, 3.0)},
    ],
)
def test_updates_there_and_back_bit_for_bit(parts):
    model = block()
    split_fused(model, FUSED)
    updates = {f"attn.qkv.{name}": part for name, part in parts.items()} | {"attn.out": update(1, 1.0)}
    joined = join_updates(model, updates)
    assert joined.keys() == {"attn.qkv", "attn.out"}
    whole = joined["attn.qkv"]
    assert len(whole.a) == sum(len(part.a) for part in parts.values())
    for name, rows in zip("qkv", delta(whole).chunk(3), strict=True):
        expected = delta(parts[name]) if name in parts else torch.zeros(4, 5)
        torch.testing.assert_close(rows, expected)
    back = split_updates(FUSED, joined)
    assert back.keys() == updates.keys()
    for name, one in updates.items():
        assert torch.equal(back[name].a, one.a)
        assert torch.equal(back[name].b, one.b)
        assert back[name].alpha == one.alpha


def test_parts_of_other_scaling_keep_their_delta():
    model = block()
    split_fused(model, FUSED)
    parts = {"q": update(2, 4.0), "v": update(3, 1.0)}
    joined = join_updates(model, {f"attn.qkv.{name}": part for name, part in parts.items()})
    rows = delta(joined["attn.qkv"]).chunk(3)
    torch.testing.assert_close(rows[0], delta(parts["q"]))
    torch.testing.assert_close(rows[2], delta(parts["v"]))


def test_an_update_of_the_whole_layer_is_one_of_every_part():
    whole = Update(torch.randn(2, 5), torch.randn(12, 2), 8.0)
    split = split_updates(FUSED, {"attn.qkv": whole})
    torch.testing.assert_close(torch.cat([delta(one) for one in split.values()]), delta(whole))


def test_an_update_that_is_still_zero_keeps_its_rank():
    split = split_updates(FUSED, {"attn.qkv": Update(torch.randn(2, 5), torch.zeros(12, 2), 8.0)})
    assert [len(one.a) for one in split.values()] == [2, 2, 2]


def trained_encoder(folder, **settings):
    """An encoder with LoRA on query and value, nothing of it zero, and its updates."""
    encoder = load_encoder(folder).eval()
    inject_lora(encoder, module_names(LoRAConfig(target_modules=("query", "value"), **settings), encoder.config))
    for layer in lora_layers(encoder).values():
        nn.init.normal_(layer.lora_B, std=0.3)
    updates = {
        name: Update(layer.lora_A.detach(), layer.lora_B.detach(), layer.lora_alpha)
        for name, layer in lora_layers(encoder).items()
    }
    return encoder, updates


@pytest.mark.parametrize("patterns", [{}, {"rank_pattern": {"value": 3}, "alpha_pattern": {"query": 2.0}}])
@pytest.mark.parametrize("kind", WITH_FUSED)
def test_real_peft_computes_the_joined_update(kind, patterns, tiny_encoder):
    peft = pytest.importorskip("peft")
    from transformers import AutoModel

    encoder, updates = trained_encoder(tiny_encoder(kind), r=2, **patterns)
    joined = join_updates(encoder, updates)
    r, alpha = {len(one.a) for one in joined.values()}, {one.alpha for one in joined.values()}
    config = peft.LoraConfig(r=r.pop(), lora_alpha=alpha.pop(), target_modules=list(joined))
    theirs = peft.get_peft_model(AutoModel.from_pretrained(tiny_encoder(kind), dtype=torch.float32), config).eval()
    for name, one in joined.items():
        layer = theirs.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = one.a, one.b
    expected = theirs(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(encoder(input_ids=IDS).last_hidden_state, expected, rtol=0, atol=rounding(TERMS))
    back = split_updates(architecture_of(encoder.config).fused, joined)
    assert back.keys() == updates.keys()
    assert all(torch.equal(back[name].a, one.a) for name, one in updates.items())
    torch.testing.assert_close([delta(back[name]) for name in updates], [delta(one) for one in updates.values()])
