import copy

import pytest
import torch

from lora_pl.formats.merging import merged_state
from lora_pl.lora import VARIANTS, LoRAConfig, LoRALinear, lora_layers, remove_lora


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arithmetic", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_sums_once_rounds_once_and_leaves_the_model_alone(variant, dtype, arithmetic, make_model):
    encoder = make_model(lora=LoRAConfig(variant=variant)).encoder
    before = copy.deepcopy(encoder.state_dict())
    state = merged_state(encoder, dtype, arithmetic)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    for name, layer in lora_layers(encoder).items():
        expected = layer.adapter.merged(layer.weight, arithmetic)
        assert expected.dtype == arithmetic
        assert torch.equal(state[f"{name}.weight"], expected.to(dtype))
    remove_lora(encoder)
    bare = encoder.state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in bare.items()}
    adapted = {name for name, tensor in state.items() if not torch.equal(tensor, bare[name].to(dtype))}
    assert len(adapted) == 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_merged_model_gives_the_same(variant, make_model):
    encoder = make_model(lora=LoRAConfig(variant=variant)).encoder
    unmerged = merged_state(encoder, torch.float32)
    for layer in lora_layers(encoder).values():
        assert isinstance(layer, LoRALinear)
        layer.merge()
    merged = merged_state(encoder, torch.float32)
    assert all(torch.equal(tensor, merged[name]) for name, tensor in unmerged.items())
