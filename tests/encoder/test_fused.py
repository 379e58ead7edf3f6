"""Fused layers split and joined, and their updates."""

import copy

import pytest
import torch
from torch import nn

from lora_pl.encoder.fused import SplitLinear, join_fused, joined_state, split_fused
from lora_pl.formats.fused_projections import Update, join_updates, split_updates

FUSED = {"attn.qkv": ("q", "k", "v")}


def block(bias: bool = True) -> nn.Module:
    attention = nn.ModuleDict({"qkv": nn.Linear(5, 12, bias=bias), "out": nn.Linear(12, 5)})
    return nn.ModuleDict({"attn": attention, "qkv": nn.Linear(5, 12)})


@pytest.mark.parametrize("bias", [True, False])
def test_split_layers_compute_the_fused_layer_and_join_to_it(bias):
    fused = block(bias)
    split = copy.deepcopy(fused)
    split_fused(split, FUSED)
    assert isinstance(split["attn"]["qkv"], SplitLinear)
    assert type(split["qkv"]) is nn.Linear
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(split["attn"]["qkv"](x), fused["attn"]["qkv"](x))
    expected = fused.state_dict()
    joined = joined_state(split, split.state_dict())
    assert joined.keys() == expected.keys()
    assert all(torch.equal(joined[name], tensor) for name, tensor in expected.items())
    join_fused(split)
    assert [type(module) for module in split.modules()] == [type(module) for module in fused.modules()]
    assert all(torch.equal(split.state_dict()[name], tensor) for name, tensor in expected.items())


def test_parts_own_their_rows():
    split = SplitLinear(nn.Linear(5, 12), ("q", "k", "v"))
    assert sum(parameter.untyped_storage().nbytes() for parameter in split.parameters()) == (5 * 12 + 12) * 4


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
