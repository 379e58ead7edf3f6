import pytest
import torch
from torch.nn import functional as F

from lora_pl.encoder.architectures import stock_head
from lora_pl.encoder.head import LinearHead, new_head
from lora_pl.encoder.loading import load_config
from lora_pl.errors import UserError
from lora_pl.formats.external import ExternalAdapter
from lora_pl.formats.external_head import head_of
from lora_pl.formats.stock_head import linear_head_of, require_representable, stock_head_state
from tests.encoder.test_architectures import WITH_HEAD


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
    assert torch.equal(by_tanh(state, stock_head(config), h), expected)


def test_in_fp16_it_is_linear_to_fp16s_own_rounding(tiny_encoder):
    config = load_config(tiny_encoder())
    head = LinearHead(config, 3)
    state = stock_head_state(head, config, torch.float16)
    h = (torch.randn(500, 16) * 5).half()
    got = by_tanh({name: tensor.float() for name, tensor in state.items()}, stock_head(config), h.float())
    exact = F.linear(h.float(), head.weight.half().float(), head.bias)
    assert (got - exact).abs().max() < 2**-11 * exact.abs().max()
    with torch.no_grad():
        head.weight[0, 0] = 100.0
    with pytest.raises(UserError) as error:
        stock_head_state(head, config, torch.float16)
    assert error.value.key == "export.dtype"


@pytest.mark.parametrize("kind", WITH_HEAD)
def test_heads_there_and_back(kind, tiny_encoder, make_model):
    config = load_config(tiny_encoder(kind))
    config.update(stock_head(config).settings)
    own = make_model(kind, head="architecture").head
    tensors = {f"module.{name}": tensor for name, tensor in stock_head_state(own, config, torch.float32).items()}
    found = head_of(ExternalAdapter("the test", {}, tensors), config)
    assert (found.kind, found.is_whole, found.outputs) == ("architecture", True, 2)
    assert found.state.keys() == own.state_dict().keys()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in own.state_dict().items())


@pytest.mark.parametrize("kind", WITH_HEAD)
def test_a_linear_head_is_written_and_recognized_or_refused(kind, tiny_encoder):
    config = load_config(tiny_encoder(kind))
    head = LinearHead(config, 3)
    if not stock_head(config).can_be_linear:
        with pytest.raises(UserError) as error:
            require_representable(head, config)
        assert error.value.key == "model.head"
        return
    found = linear_head_of(stock_head_state(head, config, torch.float32), config)
    assert torch.equal(found["weight"], head.weight)
    assert torch.equal(found["bias"], head.bias)


def test_an_architecture_without_a_stock_head_names_the_formats_that_are_left(tiny_encoder):
    config = load_config(tiny_encoder())
    config.model_type = "unlisted"
    with pytest.raises(UserError, match="export --format onnx or adapter"):
        require_representable(LinearHead(config, 2), config)


def test_a_stock_head_that_pools_otherwise_is_refused(tiny_encoder):
    config = load_config(tiny_encoder("modernbert"))
    tensors = stock_head_state(new_head("architecture", config, 2), config, torch.float32)
    with pytest.raises(UserError) as error:
        head_of(ExternalAdapter("the test", {}, tensors), config)
    assert error.value.key == "model.head"
    head_of(ExternalAdapter("lora_pl's own", {}, tensors, base={}), config)
    config.classifier_pooling = "cls"
    head_of(ExternalAdapter("the test", {}, tensors), config)
