"""LoRALinear with LoRA itself; what holds for every variant is in test_variants.py."""

import pytest
import torch
from torch import nn

from lora_pl.lora import LoRAConfig, LoRALinear, merged_lora
from tests.support import assert_equal_to_rounding


def trained_layer(**config) -> LoRALinear:
    """A layer whose B is not zero."""
    layer = LoRALinear(nn.Linear(12, 8), LoRAConfig(**{"r": 3, **config}))
    nn.init.normal_(layer.adapter.lora_B)
    return layer


def test_is_a_linear_layer_that_shares_the_base_weight():
    base = nn.Linear(12, 8)
    layer = LoRALinear(base, LoRAConfig())
    assert isinstance(layer, nn.Linear)
    assert layer.weight is base.weight
    assert layer.bias is base.bias


def test_forward_is_the_papers_formula():
    layer = trained_layer(r=3, lora_alpha=6)
    x = torch.randn(5, 12)
    a, b = layer.adapter.lora_A, layer.adapter.lora_B
    assert a.shape == (3, 12)
    assert b.shape == (8, 3)
    update = torch.einsum("bi,ri,or->bo", x, a, b) * (6 / 3)
    assert_equal_to_rounding(layer(x), x @ layer.weight.T + layer.bias + update, 12 + 3)
    assert_equal_to_rounding(layer.delta_weight(), 2 * torch.einsum("or,ri->oi", b, a), 3)


def test_initialization_of_a():
    wide = nn.Linear(4096, 64)
    assert LoRALinear(wide, LoRAConfig(r=8)).adapter.lora_A.std().item() == pytest.approx(0.02, rel=0.05)
    uniform = LoRALinear(wide, LoRAConfig(r=8, init="kaiming_uniform")).adapter.lora_A
    assert uniform.abs().max().item() == pytest.approx(4096**-0.5, rel=0.01)


def test_eval_and_train_never_touch_a_weight():
    layer = trained_layer()
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.eval().train().eval()
    assert all(torch.equal(tensor, state[name]) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_a_weight_or_bias_that_is_trained_gets_its_gradient(trained):
    layer, x = trained_layer(), torch.randn(4, 12)
    layer.weight.requires_grad_(trained == "weight")
    layer.bias.requires_grad_(trained == "bias")
    layer(x).sum().backward()
    expected = x.sum(0).expand(8, 12) if trained == "weight" else torch.full((8,), 4.0)
    assert_equal_to_rounding(getattr(layer, trained).grad, expected, 4)


def test_only_what_was_unmerged_is_unmerged_again():
    layers = nn.ModuleList(trained_layer() for _ in range(2))
    layers[0].merge()
    with merged_lora(layers):
        assert [layer.merged for layer in layers] == [True, True]
    assert [layer.merged for layer in layers] == [True, False]
