"""Which of an encoder's own parameters `train_biases` and `train_norms` name."""

import pytest
import torch
from torch import nn
from transformers import AutoModel

from lora_pl.encoder.architectures import module_names
from lora_pl.encoder.biases_and_norms import biases, biases_and_norms, norms, require_biases_and_norms
from lora_pl.encoder.fused import joined_state
from lora_pl.encoder.loading import build_encoder
from lora_pl.errors import UserError
from lora_pl.lora import LoRAConfig, inject_lora
from tests.encoder.test_architectures import KINDS
from tests.support import tiny_config

WITH_BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True}
"""ModernBERT has none by default."""
each_kind = pytest.mark.parametrize("kind", KINDS)


def config_of(kind: str):
    return tiny_config(kind, **(WITH_BIASES if kind == "modernbert" else {}))


def encoder_of(config, *targets: str) -> tuple[nn.Module, list[str]]:
    encoder = build_encoder(config)
    return encoder, inject_lora(encoder, module_names(LoRAConfig(2, target_modules=targets), config))


def stock(kind: str) -> dict[str, nn.Module]:
    """The modules of Transformers' own model, without a pooler."""
    with torch.device("meta"):
        model = AutoModel.from_config(config_of(kind))
    return {name: module for name, module in model.named_modules() if not name.startswith("pooler")}


def own(modules: dict[str, nn.Module]) -> set[str]:
    return {f"{name}.{own}" for name, module in modules.items() for own, _ in module.named_parameters(recurse=False)}


@each_kind
def test_all_is_every_bias_and_norms_are_the_layer_norms(kind):
    encoder, _ = encoder_of(config_of(kind), "query")
    modules = stock(kind)
    of_norms = own({name: module for name, module in modules.items() if isinstance(module, nn.LayerNorm)})
    every_bias = {name for name in own(modules) if name.endswith(".bias")}
    assert joined_state(encoder, biases(encoder, "all")).keys() == every_bias
    assert norms(encoder).keys() == of_norms
    assert biases(encoder, "none") == {}
    both = biases_and_norms(encoder, {"train_biases": "all", "train_norms": True})
    assert joined_state(encoder, both).keys() == every_bias | of_norms


@each_kind
def test_lora_is_the_bias_of_each_adapted_layer(kind):
    encoder, adapted = encoder_of(config_of(kind), "key", "mlp_up")
    expected = {f"{name}.bias" for name in adapted}
    if kind == "modernbert":  # of a fused projection that of all parts, as the one layer's in PEFT
        expected |= {name.replace(".key.", part) for name in expected for part in (".query.", ".value.")}
    assert biases(encoder, "lora").keys() == expected
    assert {id(parameter) for parameter in biases(encoder, "lora").values()} <= set(map(id, encoder.parameters()))


def test_names_that_only_contain_the_word():
    """T5's and MPNet's `relative_attention_bias` are embeddings."""
    encoder, _ = encoder_of(tiny_config("mpnet"), "query")
    assert "encoder.relative_attention_bias.weight" in dict(encoder.named_parameters())
    assert not [name for name in biases(encoder, "all") if "relative" in name]


@pytest.mark.parametrize(
    ("kind", "targets", "changes", "settings", "key"),
    [
        ("modernbert", ("query",), {}, {"train_biases": "all"}, "model.train_biases"),
        ("modernbert", ("query",), {"mlp_bias": True}, {"train_biases": "lora"}, "model.train_biases"),
        ("roberta", ("query",), {}, {"train_biases": "lora", "method": "head"}, "model.train_biases"),
        ("roberta", ("query",), {}, {"train_norms": True, "method": "head"}, "model.train_norms"),
        ("modernbert", ("query",), {}, {"train_norms": True}, None),
        ("modernbert", ("mlp",), {"mlp_bias": True}, {"train_biases": "lora"}, None),
        ("roberta", ("query",), {}, {"train_biases": "lora", "train_norms": True, "method": "full"}, None),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_an_error(kind, targets, changes, settings, key):
    encoder, _ = encoder_of(tiny_config(kind, **changes), *targets)
    given = {"method": "lora", "train_biases": "none", "train_norms": False, **settings}
    if key is None:
        return require_biases_and_norms(encoder, given)
    with pytest.raises(UserError, match=f"^{key}: "):
        require_biases_and_norms(encoder, given)


def test_without_norms():
    with pytest.raises(UserError, match="^model.train_norms: "):
        require_biases_and_norms(nn.Sequential(nn.Linear(2, 2)), {
            "method": "lora", "train_biases": "none", "train_norms": True})  # fmt: skip
