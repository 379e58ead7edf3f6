import copy
import pickle
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from lora_pl.lora import (
    AdapterBank,
    LoRAConfig,
    LoRAError,
    LoRALinear,
    adapter_state_dict,
    inject_lora,
    load_adapter_state_dict,
    lora_layers,
    mark_only_lora_as_trainable,
    remove_lora,
)
from tests.support import assert_equal_to_rounding


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value, self.my_query = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.my_query(self.query(x) + self.value(x))


class Model(nn.Module):
    """Names with letters A and B, and a head, none of which is LoRA's."""

    def __init__(self):
        super().__init__()
        self.ABlayers = nn.ModuleList(Attention() for _ in range(2))
        self.Bnorm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        for layer in self.ABlayers:
            x = layer(x)
        return self.head(self.Bnorm(x))


NAMES = [f"ABlayers.{n}.{kind}" for n in range(2) for kind in ("query", "value")]


@pytest.fixture
def model():
    return Model()


def test_injects_at_the_named_layers_and_nowhere_else(model):
    x = torch.randn(3, 8)
    before = model(x)
    assert inject_lora(model, LoRAConfig()) == NAMES
    assert list(lora_layers(model)) == NAMES
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("target", "count"), [("query", 2), ("0.query", 1), (r"ABlayers\.1\..*", 3), (".*query", 4), ("head", 1)]
)
def test_targets_are_last_parts_or_whole_patterns(model, target, count):
    assert len(inject_lora(model, LoRAConfig(r=2, target_modules=(target,)))) == count


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"layers": 1}, NAMES[2:]),
        ({"exclude": ("my_query", "head")}, NAMES),
        ({"layers": [0, 1], "exclude": "value"}, [NAMES[0], NAMES[2]]),
        ({"exclude": r"ABlayers\.0\..*"}, NAMES[2:]),
        ({"layers": 0, "target_modules": ".*", "exclude": ("query", "0.value")}, ["ABlayers.0.my_query"]),
    ],
)
def test_blocks_and_exclusions(model, settings, names):
    assert inject_lora(model, LoRAConfig(**settings)) == names


@pytest.mark.parametrize(
    ("module", "target"),
    [
        (nn.MultiheadAttention(8, 2), "out_proj"),
        (nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8))), "0"),
        (nn.Sequential(spectral_norm(nn.Linear(8, 8))), "0"),
        (nn.Sequential(prune.identity(nn.Linear(8, 8), "weight")), "0"),
    ],
)
def test_a_layer_whose_forward_may_not_be_called_or_computes_its_weight_is_no_target(module, target):
    with pytest.raises(LoRAError, match="^target_modules: .*no plain linear layer"):
        inject_lora(module, LoRAConfig(target_modules=(target,)))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("mask", [None, torch.tensor([[False] * 5, [False] * 3 + [True] * 2])])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_torchs_own_encoder_computes_with_the_update_in_evaluation_too(copied, mask, merged, grad):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, dropout=0, batch_first=True), 2)
    inject_lora(encoder, LoRAConfig(target_modules=("linear1", "linear2")))
    mark_only_lora_as_trainable(encoder)
    for layer in lora_layers(encoder).values():
        nn.init.normal_(layer.adapter.lora_B)
    x, seen = torch.randn(2, 5, 8), slice(None) if mask is None else ~mask
    expected = encoder(x, src_key_padding_mask=mask)[seen]
    encoder = copied(encoder).eval()
    for layer in lora_layers(encoder).values() if merged else ():
        layer.merge()
    with torch.set_grad_enabled(grad):
        assert_equal_to_rounding(encoder(x, src_key_padding_mask=mask)[seen], expected, 2 * (5 + 4 * 8 + 12))


def fast_calls(encoder: nn.TransformerEncoder) -> list[bool]:
    """For each layer that takes torch's fast path, whether it is given a nested tensor."""
    fast, mask = torch._transformer_encoder_layer_fwd, torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with mock.patch.object(torch, "_transformer_encoder_layer_fwd", wraps=fast) as calls:
        encoder(torch.randn(2, 5, 8), src_key_padding_mask=mask)
    return [call.args[0].is_nested for call in calls.call_args_list]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("banked", [False, True])
def test_torchs_own_encoder_is_as_fast_again_without_lora(banked, nested):
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval().requires_grad_(False)
    attributes, bank = {*vars(encoder)}, AdapterBank(encoder)
    assert fast_calls(encoder) == [nested, nested]
    config = LoRAConfig(target_modules=("1.linear1", "1.linear2"))
    if banked:
        bank.add("one", config)
        bank.add("two", config)
        bank.remove("one")
        with bank.route(["two"], [10]):
            assert fast_calls(encoder) == [False]
        bank.remove("two")
    else:
        inject_lora(encoder, config)
        encoder = copy.deepcopy(encoder)
        assert fast_calls(encoder) == [False]
        remove_lora(encoder)
    assert fast_calls(encoder) == [nested, nested]
    assert vars(encoder).keys() == attributes


class Shared(nn.Module):
    """One layer under three names, and another."""

    def __init__(self):
        super().__init__()
        self.a = self.b = nn.Linear(8, 8)
        self.c = nn.ModuleList([self.a, nn.Linear(8, 8)])

    def forward(self, x):
        return self.c[1](self.c[0](self.b(self.a(x))))

    def one(self) -> nn.Linear:
        assert self.a is self.b is self.c[0]
        return self.a


@pytest.mark.parametrize(
    "settings",
    [
        *({"target_modules": name} for name in ("a", "b", "c.0", ("a", "b"))),
        {"target_modules": ".*", "layers": 0},
        {"target_modules": ".*", "exclude": "c.1"},
    ],
)
def test_a_shared_layer_is_adapted_under_all_of_its_names(settings):
    model, x = Shared(), torch.randn(3, 8)
    names, before = list(model.state_dict()), model(x)
    assert inject_lora(model, LoRAConfig(**settings)) == list(lora_layers(model)) == ["a"]
    nn.init.normal_(model.one().adapter.lora_B)
    assert list(adapter_state_dict(model)) == ["a.lora_A", "a.lora_B"]
    assert {f"{name}.adapter.lora_A" for name in ("a", "b", "c.0")} < model.state_dict().keys()
    y, again = model(x), pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(again(x), y)
    again.one().merge()
    assert_equal_to_rounding(again(x), y, 4 * 8 + 3 * 4)
    assert remove_lora(model) == ["a"]
    assert type(model.one()) is nn.Linear
    assert list(model.state_dict()) == names
    assert torch.equal(model(x), before)


def test_excluded_under_one_name_is_excluded():
    model = Shared()
    assert inject_lora(model, LoRAConfig(target_modules=".*", exclude="b")) == ["c.1"]
    assert type(model.one()) is nn.Linear


def test_a_bank_holds_a_shared_layer_under_all_of_its_names():
    model, x = Shared(), torch.randn(1, 3, 8)
    bank, before = AdapterBank(model), model(x)
    bank.add("one", LoRAConfig(target_modules="b"))
    bank.add("two", LoRAConfig(target_modules="c.0"))
    assert [*bank.layers] == ["a"]
    with bank.route(["one", "two"], [2, 1]):
        assert_equal_to_rounding(model(x), before, 4 * 8)
    for name in bank.names:
        bank.remove(name)
    assert type(model.one()) is nn.Linear


@pytest.mark.parametrize("banked", [False, True])
def test_hooks_of_a_layer_stay_with_it(banked):
    model, seen = nn.Sequential(nn.Linear(8, 8)), []
    handle = model[0].register_forward_pre_hook(lambda *given: seen.append("pre"))
    model[0].register_forward_hook(lambda layer, args, kwargs, y: seen.append("forward"), with_kwargs=True)
    model[0].register_full_backward_hook(lambda *given: seen.append("backward"))
    config, bank, x = LoRAConfig(target_modules="0"), AdapterBank(model), torch.randn(1, 8, requires_grad=True)
    bank.add("one", config) if banked else inject_lora(model, config)
    with bank.route(["one"], [1]) if banked else nullcontext():
        model(x).sum().backward()
    assert seen == ["pre", "forward", "backward"]
    handle.remove()
    bank.remove("one") if banked else remove_lora(model)
    model(x)
    assert seen[3:] == ["forward"]


def test_double_injection_is_an_error(model):
    inject_lora(model, LoRAConfig())
    with pytest.raises(LoRAError, match="^model: "):
        inject_lora(model, LoRAConfig())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_modules", ("query", "quary")),
        ("r", 9),
        ("rank_pattern", {"head": 2}),
        ("alpha_pattern", {"head": 2}),
        ("layers", 2),
        ("layers", "0-7"),
        ("exclude", "quary"),
        ("exclude", ("query", "value")),
    ],
)
def test_what_does_not_fit_the_model_is_an_error_and_changes_nothing(model, field, value):
    with pytest.raises(LoRAError, match=f"^{field}: "):
        inject_lora(model, LoRAConfig(**{field: value}))
    assert not lora_layers(model)


def test_out_of_range_says_how_many_blocks_there_are(model):
    with pytest.raises(LoRAError, match="2: 0 to 1"):
        inject_lora(model, LoRAConfig(layers="1-2"))
    with pytest.raises(LoRAError, match="none"):
        inject_lora(nn.ModuleDict({"query": nn.Linear(8, 8)}), LoRAConfig(target_modules="query", layers=0))


@pytest.mark.parametrize("merged", [False, True])
def test_remove_gives_the_base_back_bit_for_bit(model, merged):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inject_lora(model.eval(), LoRAConfig())
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.adapter.lora_B)
        if merged:
            layer.merge()
    assert remove_lora(model) == NAMES
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    inject_lora(model, LoRAConfig())  # and once more


def test_only_declared_parameters_are_trainable(model):
    inject_lora(model, LoRAConfig())
    mark_only_lora_as_trainable(model, also=(model.head,))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"{n}.adapter.{p}" for n in NAMES for p in ("lora_A", "lora_B")} | {"head.weight", "head.bias"}
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == trainable


def test_state_round_trips_with_the_head(model):
    inject_lora(model, LoRAConfig())
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.adapter.lora_B)
    state = {name: tensor.clone() for name, tensor in adapter_state_dict(model, also=(model.head,)).items()}
    assert len(state) == 2 * len(NAMES) + 2
    other = Model()
    other.load_state_dict({k: v for k, v in model.state_dict().items() if "lora" not in k})
    inject_lora(other, LoRAConfig())
    nn.init.normal_(other.head.weight)
    load_adapter_state_dict(other, state, also=(other.head,))
    x = torch.randn(3, 8)
    assert torch.equal(other(x), model(x))


def test_a_strict_load_lists_every_misfit_and_changes_nothing(model):
    inject_lora(model, LoRAConfig())
    state = {name: torch.ones_like(tensor) for name, tensor in adapter_state_dict(model).items()}
    gone = state.popitem()[0]
    state["ABlayers.7.query.lora_A"] = torch.zeros(1)
    state["ABlayers.0.query.lora_A"] = torch.zeros(2, 8)
    with pytest.raises(LoRAError) as error:
        load_adapter_state_dict(model, state)
    assert error.value.key == "state"
    assert all(name in str(error.value) for name in (gone, "ABlayers.7.query.lora_A", "ABlayers.0.query.lora_A"))
    assert not any((layer.adapter.lora_A == 1).all() for layer in lora_layers(model).values())
