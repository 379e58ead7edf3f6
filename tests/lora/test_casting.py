"""Factors that are cast for all layers at once."""

import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lora_pl.lora import VARIANTS, LoRAConfig, factors_cast_to, inject_lora, lora_layers, merged_lora
from lora_pl.lora.casting import factors_of

X = torch.linspace(-1, 1, 35).view(5, 7)


@pytest.fixture(params=sorted(VARIANTS))
def model(request):
    base = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 4)).requires_grad_(False).bfloat16()
    base[0].bias = nn.Parameter(base[0].bias.float())  # trained in place
    config = LoRAConfig(r=2, lora_alpha=3, target_modules=("0", "2"), variant=request.param)
    inject_lora(base, config)
    for layer in lora_layers(base).values():
        for tensor in layer.adapter.tensors().values():
            nn.init.normal_(tensor)
    return base


def computed(model: nn.Module) -> list[torch.Tensor]:
    """Output and gradients."""
    return with_gradients(model, model(X))


def with_gradients(model: nn.Module, y: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    y.float().square().sum().backward()
    return [y, *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)]


def test_gives_what_casting_at_each_use_gives(model):
    layers = list(lora_layers(model).values())
    with torch.autocast("cpu", torch.bfloat16):
        expected = computed(model)
        with factors_cast_to(torch.bfloat16, layers):
            assert {factors_of(layer).b.dtype for layer in layers} == {torch.bfloat16}
            got = computed(model)
        assert factors_of(layers[0]).b.dtype == torch.float32
    assert [tensor.dtype for tensor in got] == [tensor.dtype for tensor in expected]
    assert all(map(torch.equal, got, expected))


def test_holds_in_this_thread_and_for_unmerged_layers_alone(model):
    layers = list(lora_layers(model).values())
    seen = []
    with factors_cast_to(torch.bfloat16, layers):
        thread = threading.Thread(target=lambda: seen.append(factors_of(layers[0]).b.dtype))
        thread.start()
        thread.join()
    assert seen == [torch.float32]
    with merged_lora(model), factors_cast_to(torch.bfloat16, layers):
        assert factors_of(layers[0]).b.dtype == torch.float32


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_have_the_same_gradients(model, reentrant):
    """In the backward, outside of the context, they are computed again."""
    with torch.autocast("cpu", torch.bfloat16):
        expected, x = computed(model), X.clone().requires_grad_()
        with factors_cast_to(torch.bfloat16, list(lora_layers(model).values())):
            y = checkpoint(model, x, use_reentrant=reentrant)
    assert all(map(torch.equal, with_gradients(model, y), expected))


def test_what_factors_save_is_freed(model, monkeypatch):
    """Though an operation, such as exp, saves its own result."""
    layer = next(iter(lora_layers(model).values()))
    factors = layer.adapter.factors(layer.weight, layer.adapter.dtype)
    monkeypatch.setattr(layer.adapter, "factors", lambda *given: factors._replace(a=layer.adapter.lora_A.exp()))
    gc.disable()
    saved = weakref.ref(factors_of(layer).a)
    gc.enable()
    assert saved() is None
