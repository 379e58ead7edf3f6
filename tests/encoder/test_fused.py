"""Fused layers split and joined."""

import copy

import pytest
import torch
from torch import nn

from lora_pl.encoder.fused import SplitLinear, join_fused, joined_state, split_fused

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
