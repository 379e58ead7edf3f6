import copy

import pytest
import torch
from torch import nn

from lora_pl import LoRAClassifier
from lora_pl.encoder.packing import Packing
from lora_pl.lora import (
    VARIANTS,
    AdapterBank,
    LoRAConfig,
    LoRAError,
    adapter_state_dict,
    inject_lora,
    mark_only_lora_as_trainable,
)
from lora_pl.lora.bank_layer import BankLinear
from tests.lora.test_variants import base_model as base
from tests.support import TINY_TERMS, assert_equal_to_rounding, rounding

CONFIGS = {
    "one": LoRAConfig(r=1, lora_alpha=16, target_modules=("0", "2")),
    "four.v2": LoRAConfig(r=4, lora_alpha=2, target_modules=("0", "2")),
    "half": LoRAConfig(r=3, lora_alpha=3, target_modules=("2",), variant=[*VARIANTS][-1]),
}
TERMS = 6 + 4 + 8 + 4
"""From x to y: a layer's width and rank, twice."""
ROUTES = [["one", "four.v2", "half"], ["half", None, "one", "half", "four.v2"], ["four.v2"], [None, None]]


def alone(config: LoRAConfig) -> nn.Sequential:
    """A model with one adapter injected, away from its start at zero."""
    model = base()
    inject_lora(model, config)
    mark_only_lora_as_trainable(model)
    for tensor in adapter_state_dict(model).values():
        nn.init.normal_(tensor)
    return model


def banked() -> tuple[AdapterBank, dict[str, nn.Sequential]]:
    singles = {name: alone(config) for name, config in CONFIGS.items()}
    bank = AdapterBank(base())
    for name, single in singles.items():
        bank.add(name, CONFIGS[name], adapter_state_dict(single))
    return bank, singles


def segments(count: int) -> tuple[list[int], torch.Tensor]:
    lengths = [3, 1, 2, 4, 1][:count]
    return lengths, torch.randn(1, sum(lengths), 6)


@pytest.mark.parametrize("names", ROUTES)
@pytest.mark.parametrize("grad", [True, False])
def test_every_segment_goes_through_its_own_adapter(names, grad):
    bank, singles = banked()
    lengths, x = segments(len(names))
    with bank.route(names, lengths), torch.set_grad_enabled(grad):
        y = bank.model(x)
    models = {**singles, None: base()}
    expected = [models[name](part) for name, part in zip(names, x.split(lengths, 1), strict=True)]
    assert_equal_to_rounding(y, torch.cat(expected, 1), TERMS)


@pytest.mark.parametrize("names", ROUTES[:3])
def test_gradients_are_those_of_each_adapter_alone(names):
    bank, singles = banked()
    lengths, x = segments(len(names))
    x.requires_grad_()
    with bank.route(names, lengths):
        bank.model(x).square().sum().backward()
    for name, part in zip(names, x.detach().split(lengths, 1), strict=True):
        if name is not None:
            singles[name](part).square().sum().backward()
    for name in set(names) - {None}:
        expected = [p.grad for p in singles[name].parameters() if p.requires_grad]
        for parameter, gradient in zip(bank.parameters(name), expected, strict=True):
            assert_equal_to_rounding(parameter.grad, gradient, x.shape[1] * TERMS)
    for name in set(CONFIGS) - set(names):
        assert all(p.grad is None for p in bank.parameters(name)), "an adapter that was not asked"
    assert x.grad is not None


@pytest.mark.parametrize("shape", [(1, 3), (3,), (3, 4)])
def test_rows_may_be_tokens_first_tokens_or_padded_sentences(shape):
    bank, singles = banked()
    names, x = ["one", None, "four.v2"], torch.randn(*shape, 6)
    lengths = [4, 4, 4] if shape == (3, 4) else [2, 5, 1]
    with bank.route(names, lengths):
        y = bank.model(x).reshape(3, -1, 5)
    models = {**singles, None: base()}
    expected = [models[name](part) for name, part in zip(names, x.reshape(3, -1, 6), strict=True)]
    assert_equal_to_rounding(y, torch.stack(expected), TERMS)


def test_lies_over_the_frozen_weight_without_a_copy():
    model = base()
    weight, names = model[0].weight, [name for name, _ in model.named_parameters()]
    before = copy.deepcopy(model.state_dict())
    bank = AdapterBank(model)
    for name, config in CONFIGS.items():
        bank.add(name, config)
    assert model[0].weight is weight
    assert isinstance(model[0], BankLinear)
    mark_only_lora_as_trainable(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sum(p.numel() for name in bank.names for p in bank.parameters(name)) > 0
    for name in CONFIGS:
        bank.remove(name)
    assert type(model[0]) is nn.Linear
    assert [name for name, _ in model.named_parameters()] == names
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_load_by_name_is_strict():
    bank, singles = banked()
    kept = copy.deepcopy(bank.state_dict("half"))
    poisoned = {key: tensor * float("nan") for key, tensor in kept.items()}
    for state in (adapter_state_dict(singles["one"]), poisoned):
        with pytest.raises(LoRAError, match="^state: "):
            bank.load("half", state)
        assert all(torch.equal(tensor, kept[key]) for key, tensor in bank.state_dict("half").items())
    with pytest.raises(LoRAError, match="^state: "):
        bank.add("other", CONFIGS["half"], adapter_state_dict(singles["one"]))
    assert bank.names == list(CONFIGS)


@pytest.mark.parametrize(
    ("name", "config", "key"),
    [
        ("one", LoRAConfig(target_modules=("0",)), "adapter"),
        ("other", LoRAConfig(target_modules=("quary",)), "target_modules"),
        ("other", LoRAConfig(r=6, target_modules=("0", "2")), "r"),
        ("other", LoRAConfig(target_modules=("0",), rank_pattern={"2": 2}), "rank_pattern"),
        ("other", LoRAConfig(target_modules=("0",), alpha_pattern={"quary": 2.0}), "alpha_pattern"),
    ],
)
def test_a_configuration_that_does_not_fit_changes_nothing(name, config, key):
    bank, _ = banked()
    before = [key for key, _ in bank.model.named_parameters()]
    with pytest.raises(LoRAError, match=f"^{key}: "):
        bank.add(name, config)
    assert bank.names == list(CONFIGS)
    assert [key for key, _ in bank.model.named_parameters()] == before


def test_mistakes_of_a_route_are_named():
    bank, _ = banked()

    def run(names, lengths):
        with bank.route(names, lengths):
            bank.model(torch.zeros(1, 2, 6))

    for key, mistake in (
        ("adapter", lambda: run(["other"], [2])),
        ("adapter", lambda: bank.model(torch.zeros(1, 2, 6))),
        ("route", lambda: run(["one"], [3])),
        ("route", lambda: run(["one"], [1, 1])),
        ("model", lambda: AdapterBank(bank.model)),
    ):
        with pytest.raises(LoRAError, match=f"^{key}: "):
            mistake()


def test_dropout_is_each_adapters_own():
    bank = AdapterBank(base())
    for name, p in (("wet", 0.0), ("dry", 0.5)):
        bank.add(name, LoRAConfig(r=2, lora_dropout=p, target_modules=("0",)))
        for parameter in bank.parameters(name):
            nn.init.ones_(parameter)
    x = torch.ones(1, 2000, 6)
    with torch.no_grad(), bank.route(["wet", None, "dry"], [500, 500, 1000]):
        update = bank.model.train()[0](x) - nn.functional.linear(x, bank.model[0].weight, bank.model[0].bias)
        wet, none, dry = update[0, :, 0].split([500, 500, 1000])
    assert wet.std() < rounding(6 + 2, scale=wet.mean().item())
    assert none.abs().max() < rounding(6)
    assert dry.std() > 1
    assert dry.mean() == pytest.approx(wet.mean().item(), rel=0.1)


@pytest.mark.parametrize("targets", [("query", "value"), ("query", "dense")])
def test_a_packed_row_of_an_encoder_mixes_adapters_sentence_by_sentence(targets, tiny_encoder):
    """Also where the last layer sees first tokens alone."""
    torch.manual_seed(0)
    configs = {"a": LoRAConfig(r=2, target_modules=targets), "b": LoRAConfig(r=5, target_modules=("value",))}
    models = {name: LoRAClassifier(encoder=tiny_encoder(), lora=config).eval() for name, config in configs.items()}
    models[None] = LoRAClassifier(encoder=tiny_encoder(), method="head").eval()
    reader = LoRAClassifier(encoder=tiny_encoder(), method="head").eval()
    bank = AdapterBank(reader.encoder)
    for name, config in configs.items():
        for tensor in adapter_state_dict(models[name].encoder).values():
            nn.init.normal_(tensor, std=0.2)
        bank.add(name, config, adapter_state_dict(models[name].encoder))
    names, lengths = ["b", "a", None, "a"], [4, 7, 1, 3]
    ids = torch.randint(4, 20, (1, sum(lengths)))

    def features(model, ids, lengths):
        return model.base.reader.of_packed(ids, torch.zeros_like(ids), Packing(lengths)).float()

    # in bf16 what a layer adds to the row is rounded, twice a layer
    for dtype, terms in ((torch.float32, TINY_TERMS), (torch.bfloat16, 4)):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            with bank.route(names, lengths):
                together = features(reader, ids, lengths)
            parts = zip(names, lengths, ids.split(lengths, 1), strict=True)
            alone = torch.cat([features(models[name], part, [length]) for name, length, part in parts])
        assert_equal_to_rounding(together, alone, terms, dtype)
