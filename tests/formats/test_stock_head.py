import pytest
import torch
from torch.nn import functional as F

from lora_pl.encoder.head import LinearHead
from lora_pl.encoder.loading import load_config
from lora_pl.errors import UserError
from lora_pl.formats.stock_head import linear_head_of, require_representable, stock_head_state, stock_names
from tests.encoder.test_loading import KINDS


def by_tanh(state, names, h):
    dense = F.linear(h, state[f"{names.dense}.weight"], state[f"{names.dense}.bias"])
    return F.linear(torch.tanh(dense), state[f"{names.out_proj}.weight"], state[f"{names.out_proj}.bias"])


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "bert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tanh_head_is_a_linear_one_bit_for_bit(kind, dtype, tiny_encoder):
    config = load_config(tiny_encoder(kind))
    head = LinearHead(config, 3)
    state = stock_head_state(head, config, dtype)
    h = (torch.randn(500, 16) * torch.logspace(-3, 0.5, 16)).to(dtype)
    expected = F.linear(h, head.weight.to(dtype), head.bias.to(dtype))
    assert h.abs().max() > 5
    assert torch.equal(by_tanh(state, stock_names(config), h), expected)


def test_in_fp16_it_is_linear_to_fp16s_own_rounding(tiny_encoder):
    config = load_config(tiny_encoder())
    head = LinearHead(config, 3)
    state = stock_head_state(head, config, torch.float16)
    h = (torch.randn(500, 16) * 5).half()
    got = by_tanh({name: tensor.float() for name, tensor in state.items()}, stock_names(config), h.float())
    exact = F.linear(h.float(), head.weight.half().float(), head.bias)
    assert (got - exact).abs().max() < 2**-11 * exact.abs().max()
    with torch.no_grad():
        head.weight[0, 0] = 100.0
    with pytest.raises(UserError, match="out of the range of torch.float16; take float32 or bfloat16"):
        stock_head_state(head, config, torch.float16)


@pytest.mark.parametrize(("kind", "activation"), [("distilbert", "relu"), ("electra", "gelu")])
def test_other_activations_are_refused_with_the_reason_and_the_ways_on(kind, activation, tiny_encoder):
    config = load_config(tiny_encoder(kind))
    with pytest.raises(UserError, match=f"puts a {activation} .* export --format onnx or adapter, or train with"):
        require_representable(LinearHead(config, 2), config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_head_is_recognized_and_no_other(kind, tiny_encoder, make_model):
    config = load_config(tiny_encoder(kind))
    own = make_model(kind, head="architecture")
    assert linear_head_of(stock_head_state(own.head, config, torch.float32), config) is None
    if kind in ("distilbert", "electra"):
        return
    head = LinearHead(config, 3)
    found = linear_head_of(stock_head_state(head, config, torch.float32), config)
    assert torch.equal(found["weight"], head.weight)
    assert torch.equal(found["bias"], head.bias)
