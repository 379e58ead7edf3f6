import pytest
import torch

from lora_pl.lora import LoRAConfig, LoRALinear, merged_lora
from lora_pl.lora.product import low_rank_product


def operands(dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 6, dtype=dtype), torch.randn(4, 6, dtype=dtype)
    a, b = torch.randn(3, 6, dtype=dtype), torch.randn(4, 3, dtype=dtype)
    return x, weight, torch.randn(4, dtype=dtype) if bias else None, a, b


@pytest.mark.parametrize("bias", [True, False])
def test_is_the_formula_with_its_gradients(bias):
    x, weight, b0, a, b = operands(bias=bias)
    for tensor in (x, a, b):
        tensor.requires_grad_()
    y = low_rank_product(x, weight, b0, a, b, 2.0)
    expected = torch.nn.functional.linear(x, weight + 2 * b @ a, b0)
    torch.testing.assert_close(y, expected)
    assert torch.autograd.gradcheck(lambda x, a, b: low_rank_product(x, weight, b0, a, b, 2.0), (x, a, b))


def test_constants_get_no_gradient_and_the_input_only_if_it_needs_one():
    x, weight, bias, a, b = operands(torch.float32)
    a.requires_grad_(), b.requires_grad_()
    low_rank_product(x, weight, bias, a, b, 1.0).sum().backward()
    assert x.grad is None
    assert weight.grad is None
    assert a.grad.shape == a.shape


def test_the_gradients_of_adapters_are_fp32_in_half_precision():
    x, weight, bias, a, b = operands(torch.bfloat16)
    a, b = (t.float().requires_grad_() for t in (a, b))
    y = low_rank_product(x, weight, bias, a, b, 1.0)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert a.grad.dtype == b.grad.dtype == torch.float32


def test_only_what_was_apart_is_unmerged():
    layers = torch.nn.ModuleList(LoRALinear(torch.nn.Linear(3, 3), LoRAConfig(r=1)) for _ in range(2))
    layers[0].merge()
    with merged_lora(layers):
        assert [layer.merged for layer in layers] == [True, True]
    assert [layer.merged for layer in layers] == [True, False]
