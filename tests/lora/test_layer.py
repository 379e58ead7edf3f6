import copy
import pickle

import pytest
import torch
from torch import nn

from lora_pl.lora import LoRAConfig, LoRALinear, disable_lora
from tests.support import assert_equal_to_rounding

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def trained_layer(dtype: torch.dtype = torch.float32, bias: bool = True, **config) -> LoRALinear:
    """A layer whose B is not zero."""
    layer = LoRALinear(nn.Linear(12, 8, bias=bias, dtype=dtype), LoRAConfig(**{"r": 3, **config}))
    nn.init.normal_(layer.lora_B)
    return layer


@pytest.mark.parametrize("dtype", DTYPES)
def test_starts_as_the_base_to_the_last_bit(dtype):
    base = nn.Linear(12, 8, dtype=dtype)
    x = torch.randn(5, 12, dtype=dtype)
    assert torch.equal(LoRALinear(base, LoRAConfig())(x), base(x))


def test_is_a_linear_layer_that_shares_the_base_weight():
    base = nn.Linear(12, 8)
    layer = LoRALinear(base, LoRAConfig())
    assert isinstance(layer, nn.Linear)
    assert layer.weight is base.weight
    assert layer.bias is base.bias


@pytest.mark.parametrize("dtype", DTYPES)
def test_adapters_are_fp32_whatever_the_base(dtype):
    layer = trained_layer(dtype)
    assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32
    assert layer.lora_A.shape == (3, 12)
    assert layer.lora_B.shape == (8, 3)
    assert layer(torch.randn(2, 12, dtype=dtype)).dtype == dtype


def test_adapters_are_on_the_base_device():
    layer = LoRALinear(nn.Linear(12, 8, device="meta"), LoRAConfig())
    assert layer.lora_A.device.type == layer.lora_B.device.type == "meta"


def test_forward_is_the_formula():
    layer = trained_layer(r=3, lora_alpha=6)
    x = torch.randn(5, 12)
    update = torch.einsum("bi,ri,or->bo", x, layer.lora_A, layer.lora_B) * (6 / 3)
    assert_equal_to_rounding(layer(x), x @ layer.weight.T + layer.bias + update, 12 + 3)
    assert_equal_to_rounding(layer.delta_weight(), 2 * torch.einsum("or,ri->oi", layer.lora_B, layer.lora_A), 3)


def test_initialization_of_a():
    wide = nn.Linear(4096, 64)
    assert LoRALinear(wide, LoRAConfig(r=8)).lora_A.std().item() == pytest.approx(0.02, rel=0.05)
    uniform = LoRALinear(wide, LoRAConfig(r=8, init="kaiming_uniform")).lora_A
    assert uniform.abs().max().item() == pytest.approx(4096**-0.5, rel=0.01)


def test_dropout_acts_on_the_branch_alone_and_only_in_training():
    layer = trained_layer(lora_dropout=0.5)
    x = torch.randn(4, 12)
    assert not torch.equal(layer(x), layer(x))
    with disable_lora(layer):
        assert torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_merge_gives_the_same_and_unmerge_the_very_same(dtype, bias):
    layer = trained_layer(dtype, bias).eval()
    before, bits = layer.weight, layer.weight.clone()
    x = torch.randn(6, 12, dtype=dtype)
    apart = layer(x)
    layer.merge()
    assert layer.merged
    expected = (bits.float() + layer.delta_weight()).to(dtype)  # one rounding
    assert torch.equal(layer.weight, expected)
    assert_equal_to_rounding(layer(x), apart, 15 if dtype == torch.float32 else 1)
    layer.merge()  # a second time changes nothing
    assert torch.equal(layer.weight, expected)
    layer.unmerge()
    assert not layer.merged
    assert torch.equal(layer.weight, bits)
    assert torch.equal(before, bits), "a module that shares the weight was changed"
    assert torch.equal(layer(x), apart)


def test_eval_and_train_never_touch_a_weight():
    layer = trained_layer()
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.eval().train().eval()
    assert all(torch.equal(tensor, state[name]) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize("merged", [False, True])
def test_disable_lora_gives_the_base_and_then_the_layer_back(merged):
    base = nn.Linear(12, 8)
    layer = LoRALinear(base, LoRAConfig())
    nn.init.normal_(layer.lora_B)
    x = torch.randn(5, 12)
    with_lora, without = layer(x), base(x)
    if merged:
        layer.merge()
    with pytest.raises(RuntimeError, match="inside"), disable_lora(layer):
        assert torch.equal(layer(x), without)
        raise RuntimeError("inside")
    assert_equal_to_rounding(layer(x), with_lora, 12 + 4)


@pytest.mark.parametrize("base_dtype", DTYPES[:2])
def test_autocast_computes_in_its_type_and_trains_in_fp32(base_dtype):
    layer = trained_layer(base_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(4, 12))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.lora_A.grad.dtype == layer.lora_B.grad.dtype == torch.float32


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_whole_and_apart(copied, merged):
    layer = trained_layer().eval()
    if merged:
        layer.merge()
    x = torch.randn(3, 12)
    twin = copied(layer)
    assert torch.equal(twin(x), layer(x))
    with torch.no_grad():
        twin.lora_B.zero_()
    twin.unmerge()
    assert not torch.equal(twin(x), layer(x))


def test_export_traces_the_layer():
    layer = trained_layer().eval()
    x = torch.randn(4, 12)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = torch.randn(7, 12)
    assert_equal_to_rounding(exported.module()(more), layer(more), 12 + 4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    from torch.utils.checkpoint import checkpoint

    layer = trained_layer()
    x = torch.randn(4, 12, requires_grad=True)
    layer(x).square().sum().backward()
    plain = layer.lora_A.grad.clone()
    layer.zero_grad()
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    assert_equal_to_rounding(layer.lora_A.grad, plain, 2 * (12 + 4) + 4)
