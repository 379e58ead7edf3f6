"""Products with weights in 8 bits, on CPUs that have them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_pl.lora import LoRAConfig, LoRALinear, adapter_state_dict, load_adapter_state_dict
from lora_pl.lora.int8 import Int8Weight, int8_is_fast

pytestmark = pytest.mark.skipif(not int8_is_fast(), reason="needs AVX512_VNNI")
DTYPES = [torch.float32, torch.bfloat16]


def relative_error(value, expected) -> float:
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()


def quantized(outputs=96, inputs=64, dtype=torch.float32) -> tuple[torch.Tensor, Int8Weight]:
    weight = torch.randn(outputs, inputs) * 0.05
    return weight, Int8Weight(weight, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_those_of_the_weight_to_eight_bits(dtype):
    weight, codes = quantized(dtype=dtype)
    x, bias = torch.randn(3, 5, 64, dtype=dtype, requires_grad=True), torch.randn(96)
    y = F.linear(x, codes, bias)
    dy = torch.randn_like(y)
    y.backward(dy)
    assert y.dtype == x.grad.dtype == dtype
    assert 0.001 < relative_error(y, x.double() @ weight.double().T + bias) < 0.015
    assert 0.001 < relative_error(x.grad, dy.double() @ weight.double()) < 0.02
    assert relative_error(codes, weight) < 0.01


def test_in_other_types_it_is_a_matrix():
    _, codes = quantized()
    assert type(codes.double()) is torch.Tensor
    assert torch.equal(torch.linalg.svdvals(codes.double()), torch.linalg.svdvals(codes.dequantized().double()))


def test_autocast_computes_in_its_type():
    _, weight = quantized(dtype=torch.float32)
    x = torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        y = F.linear(x, weight)
    assert torch.equal(y, F.linear(x.bfloat16(), weight.to(torch.bfloat16)))
    assert isinstance(weight.to(torch.bfloat16), Int8Weight)
    assert not isinstance(weight.to("meta"), Int8Weight)


def test_what_eight_bits_hold_is_exact():
    codes = torch.randint(-126, 127, (96, 64)).float()
    codes[:, 0], codes[0, :] = 127, 127
    rows = torch.randint(-126, 127, (7, 64)).float()
    rows[:, 0] = 126
    weight, scales = Int8Weight(codes / 8, torch.float32), 2.0 ** torch.arange(7)[:, None]
    assert torch.equal(F.linear(rows * scales, weight), (rows * scales) @ (codes / 8).T)
    assert torch.equal(weight + 0, codes / 8)


def test_other_products_see_the_matrix():
    _, weight = quantized()
    x, dy = torch.randn(2, 3, 64), torch.randn(2, 3, 96)
    assert torch.equal(F.linear(input=x, weight=weight), F.linear(x, weight.dequantized()))
    assert torch.equal(dy @ weight, dy @ weight.dequantized())
    assert torch.equal(weight @ x[0].T, weight.dequantized() @ x[0].T)


def test_rows_are_quantized_by_themselves():
    _, weight = quantized(dtype=torch.bfloat16)
    x = torch.randn(4, 64, dtype=torch.bfloat16)
    alone = [F.linear(row[None], weight) for row in x]
    x[0] *= 1000
    assert torch.equal(F.linear(x, weight)[1:], torch.cat(alone)[1:])


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_inf_and_nan_stay_in_their_rows(broken):
    _, weight = quantized()
    x = torch.randn(3, 64)
    x[0] = 0
    x[1, 5] = broken
    y = F.linear(x, weight)
    assert torch.equal(y[0], torch.zeros(96))
    assert not y[1].isfinite().any()
    assert y[2].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_adapted_layer_trains_beside_it(dtype, monkeypatch):
    """By products in 8 bits, both ways."""
    monkeypatch.setattr(Int8Weight, "dequantized", lambda self: pytest.fail("the product is one of floats"))
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(64, 96).requires_grad_(False), LoRAConfig(r=4, target_modules=("x",)))
    nn.init.normal_(layer.adapter.lora_B)
    eight = copy.deepcopy(layer)
    eight.weight = nn.Parameter(Int8Weight(layer.weight, dtype), requires_grad=False)
    gradients = []
    for each in (layer, eight):
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            each(x).float().square().sum().backward()
        gradients.append([x.grad, each.adapter.lora_A.grad, each.adapter.lora_B.grad])
    assert all(relative_error(*pair) < 0.02 for pair in zip(*gradients, strict=True))
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        assert torch.equal(each(x), each(x.detach().requires_grad_()))


def test_a_bias_in_training_gets_its_gradient():
    layer = nn.Linear(64, 96)
    layer.weight = nn.Parameter(Int8Weight(layer.weight, torch.float32), requires_grad=False)
    layer(torch.randn(5, 64, requires_grad=True)).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((96,), 5.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_state_that_is_loaded_leaves_the_layer_as_it_is(dtype):
    config = LoRAConfig(r=4, target_modules=("x",), variant="dora")
    layer = LoRALinear(nn.Linear(64, 96).requires_grad_(False), config)
    nn.init.normal_(layer.adapter.lora_B)
    layer.weight = nn.Parameter(Int8Weight(layer.weight, dtype), requires_grad=False)
    x = torch.randn(5, 64, dtype=dtype)
    before = layer(x)
    load_adapter_state_dict(layer, adapter_state_dict(layer))
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_computes_the_same(again):
    layer = nn.Linear(64, 96)
    layer.weight = nn.Parameter(Int8Weight(layer.weight, torch.bfloat16), requires_grad=False)
    copied, x = again(layer), torch.randn(5, 64)
    assert torch.equal(copied(x), layer(x))
    assert copied.weight.dtype == torch.bfloat16
    assert not copied.weight.requires_grad
