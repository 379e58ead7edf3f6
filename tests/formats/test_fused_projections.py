"""Adapters of fused layers, whole and in parts, for every variant that other programs have."""

import pytest
import torch
from torch import nn

from lora_pl.encoder.architectures import ARCHITECTURES, architecture_of, module_names
from lora_pl.encoder.fused import split_fused
from lora_pl.encoder.loading import load_encoder
from lora_pl.formats.external import ExternalLayer
from lora_pl.formats.fused_projections import join_parts, split_parts
from lora_pl.lora import VARIANTS, LoRAConfig, inject_lora, lora_layers
from tests.encoder.test_architectures import TERMS
from tests.encoder.test_fused import FUSED, block
from tests.support import assert_equal_to_rounding, rounding

WITH_FUSED = [kind for kind, row in ARCHITECTURES.items() if row.fused]
IDS = torch.tensor([[0, 5, 6, 7, 9, 11, 2]])
each_variant = pytest.mark.parametrize(
    "variant", [name for name, variant in VARIANTS.items() if variant.peft_settings is not None]
)


def moved(model: nn.Module, config: LoRAConfig) -> dict[str, ExternalLayer]:
    """The adapters of a model, away from their start."""
    inject_lora(model, config)
    for layer in lora_layers(model).values():
        for tensor in layer.adapter.tensors().values():
            nn.init.normal_(tensor, std=0.3)
    return {name: ExternalLayer.of(layer.adapter) for name, layer in lora_layers(model).items()}


def merged(linear: nn.Linear, layer: ExternalLayer) -> torch.Tensor:
    return layer.adapter(linear).merged(linear.weight).detach()


@each_variant
@pytest.mark.parametrize(
    ("targets", "patterns"),
    [
        (("q", "v"), {}),
        (("q", "k", "v"), {"rank_pattern": {"k": 4}, "alpha_pattern": {"k": 8.0}}),
        (("k",), {}),
        (("q", "v"), {"rank_pattern": {"v": 3}, "alpha_pattern": {"q": 1.0}}),
    ],
)
def test_the_joined_adapter_is_the_parts_and_back(variant, targets, patterns):
    model = block()
    whole = nn.Linear(*reversed(model.get_submodule("attn.qkv").weight.shape))
    whole.weight = nn.Parameter(model.get_submodule("attn.qkv").weight.detach().clone())
    split_fused(model, FUSED)
    linear = {name: model.get_submodule(f"attn.qkv.{name}") for name in "qkv"}
    layers = moved(model, LoRAConfig(r=2, lora_alpha=4, variant=variant, target_modules=(*targets, "out"), **patterns))
    joined = join_parts(model, layers)
    assert joined.keys() == {"attn.qkv", "attn.out"}
    rows = merged(whole, joined["attn.qkv"]).chunk(3)
    for name, own in zip("qkv", rows, strict=True):
        layer = layers.get(f"attn.qkv.{name}")
        expected = merged(linear[name], layer) if layer else linear[name].weight.detach()
        assert_equal_to_rounding(own, expected, 20)
    back = split_parts(FUSED, joined)
    assert layers.keys() <= back.keys()
    for name, layer in back.items():
        if name in layers and not patterns:
            assert layer.alpha == layers[name].alpha
            assert all(torch.equal(tensor, layers[name].tensors[own]) for own, tensor in layer.tensors.items())
        part = name.rpartition(".")[2]
        if part in linear:
            assert_equal_to_rounding(merged(linear[part], layer), rows["qkv".index(part)], 20)


@each_variant
def test_an_adapter_of_the_whole_layer_is_one_of_every_part(variant):
    whole = nn.Linear(5, 12)
    adapter = VARIANTS[variant](whole, LoRAConfig(r=2, lora_alpha=8))
    for tensor in adapter.tensors().values():
        nn.init.normal_(tensor)
    split = split_parts(FUSED, {"attn.qkv": ExternalLayer.of(adapter)})
    expected = adapter.merged(whole.weight).detach().chunk(3)
    for rows, weight, layer in zip(expected, whole.weight.detach().chunk(3), split.values(), strict=True):
        linear = nn.Linear(5, 4)
        linear.weight = nn.Parameter(weight.clone())
        assert_equal_to_rounding(merged(linear, layer), rows, 20)


@each_variant
def test_an_update_that_is_still_zero_keeps_its_rank(variant):
    fresh = ExternalLayer.of(VARIANTS[variant](nn.Linear(5, 12), LoRAConfig(r=2)))
    assert [layer.r for layer in split_parts(FUSED, {"attn.qkv": fresh}).values()] == [2, 2, 2]


@each_variant
@pytest.mark.parametrize("patterns", [{}, {"rank_pattern": {"value": 3}, "alpha_pattern": {"query": 2.0}}])
@pytest.mark.parametrize("kind", WITH_FUSED)
def test_real_peft_computes_the_joined_adapter(kind, patterns, variant, tiny_encoder):
    peft = pytest.importorskip("peft")
    from transformers import AutoModel

    encoder = load_encoder(tiny_encoder(kind)).eval()
    config = LoRAConfig(r=2, variant=variant, target_modules=("query", "value"), **patterns)
    joined = join_parts(encoder, moved(encoder, module_names(config, encoder.config)))
    (r,), (alpha,) = {layer.r for layer in joined.values()}, {layer.alpha for layer in joined.values()}
    settings = {"r": r, "lora_alpha": alpha, "target_modules": list(joined), **VARIANTS[variant].peft_settings}
    stock = AutoModel.from_pretrained(tiny_encoder(kind), dtype=torch.float32)
    theirs = peft.get_peft_model(stock, peft.LoraConfig(**settings)).eval()
    names = VARIANTS[variant].peft_names
    state = {f"base_model.model.{n}.{names[o]}": t for n, x in joined.items() for o, t in x.tensors.items()}
    assert not peft.set_peft_model_state_dict(theirs, state).unexpected_keys
    expected = theirs(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(encoder(input_ids=IDS).last_hidden_state, expected, rtol=0, atol=rounding(TERMS))
    back = split_parts(architecture_of(encoder.config).fused, joined)
    assert set(lora_layers(encoder)) <= back.keys()
