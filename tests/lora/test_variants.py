"""What holds for every variant; a new row of `VARIANTS` inherits it."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lora_pl.lora import (
    VARIANTS,
    AdapterBank,
    LoRAConfig,
    LoRAError,
    LoRALinear,
    adapter_state_dict,
    disable_lora,
    inject_lora,
    load_adapter_state_dict,
    mark_only_lora_as_trainable,
    remove_lora,
)
from lora_pl.lora.adapter import Factors
from tests.support import assert_equal_to_rounding

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
IN, OUT = 12, 8

each_variant = pytest.mark.parametrize("variant", VARIANTS)
pytestmark = each_variant


def move(module: nn.Module) -> None:
    """Move every trained parameter away from its start."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.5)


def trained_layer(variant: str, dtype: torch.dtype = torch.float32, bias: bool = True, **config) -> LoRALinear:
    base = nn.Linear(IN, OUT, bias=bias, dtype=dtype).requires_grad_(False)
    layer = LoRALinear(base, LoRAConfig(**{"r": 3, "lora_alpha": 2, "variant": variant, **config}))
    move(layer)
    return layer


def factors_of(layer: LoRALinear) -> Factors:
    return layer.adapter.factors(layer.weight, layer.adapter.dtype)


def by_formula(layer: LoRALinear, x: torch.Tensor, factors: Factors | None = None) -> torch.Tensor:
    """y = gain * (x W0^T + scale * (x a^T) b^T) + bias, factor by factor."""
    a, b, scale, gain = factors or factors_of(layer)
    y = x @ layer.weight.T + scale * (x @ a.T @ b.T)
    y = y if gain is None else gain * y
    return y if layer.bias is None else y + layer.bias


def gradients(module: nn.Module, y: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    y.square().sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_starts_as_the_base_to_the_last_bit(variant, dtype, grad):
    base = nn.Linear(300, 40, dtype=dtype).requires_grad_(False)
    layer, x = LoRALinear(base, LoRAConfig(variant=variant)), torch.randn(5, 300, dtype=dtype)
    with torch.set_grad_enabled(grad):
        assert torch.equal(layer(x), base(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(x), base(x))


def test_starts_as_the_base_also_where_the_base_is_cast_later(variant):
    base = nn.Linear(300, 40).requires_grad_(False)
    layer, x = LoRALinear(base, LoRAConfig(variant=variant)), torch.randn(5, 300, dtype=torch.bfloat16)
    base.weight.data, base.bias.data = base.weight.data.bfloat16(), base.bias.data.bfloat16()
    assert torch.equal(layer(x), base(x))


def test_rslora_is_the_variant_with_alpha_times_the_root_of_r(variant):
    base = nn.Linear(IN, OUT).requires_grad_(False)
    one, other = (
        LoRALinear(base, LoRAConfig(r=4, variant=variant, scaling=scaling, lora_alpha=alpha))
        for scaling, alpha in (("rslora", 6), ("standard", 12))
    )
    move(one)
    other.adapter.load_state_dict(one.adapter.state_dict())
    assert torch.equal(one.delta_weight(), other.delta_weight())
    assert one.delta_weight().any()


def test_alpha_scales_the_update(variant):
    layer = trained_layer(variant, lora_alpha=2)
    twice = LoRALinear(layer, LoRAConfig(r=3, lora_alpha=4, variant=variant))
    twice.adapter.load_state_dict(layer.adapter.state_dict())
    assert not torch.allclose(twice.delta_weight(), layer.delta_weight())
    if factors_of(layer).gain is None:
        assert torch.equal(twice.delta_weight(), 2 * layer.delta_weight())


def test_declares_its_parameters_in_order(variant):
    layer = trained_layer(variant, torch.bfloat16)
    own = dict(layer.adapter.named_parameters())
    assert list(own) == list(layer.adapter.tensors()) == list(VARIANTS[variant].axes)
    assert all(parameter.dtype == torch.float32 for parameter in own.values())
    assert layer.adapter.rank_of(layer.adapter.tensors()) == 3
    mark_only_lora_as_trainable(layer)
    assert [p for p in layer.parameters() if p.requires_grad] == list(own.values())


def test_b_is_what_starts_at_zero(variant):
    if not VARIANTS[variant].b_names():
        pytest.skip("this variant trains no B")
    fresh = LoRALinear(nn.Linear(IN, OUT), LoRAConfig(r=3, variant=variant)).adapter
    assert fresh.b_names() == [name for name, tensor in fresh.tensors().items() if not tensor.any()]


@pytest.mark.parametrize(("option", "value", "names"), [("lr_ratio", 2.0, "b_names"), ("init", "eva", "a_names")])
def test_an_option_of_a_matrix_that_is_not_trained_is_refused(variant, option, value, names, monkeypatch):
    monkeypatch.setattr(VARIANTS[variant], names, list)
    with pytest.raises(LoRAError, match=f"^{option}: .*variant {variant}, which trains no"):
        LoRAConfig(variant=variant, **{option: value})


def test_peft_names_every_parameter_and_chooses_its_variant(variant):
    own = VARIANTS[variant]
    if own.peft_settings is None:
        pytest.skip("PEFT does not have this variant")
    assert own.peft_names.keys() == own.axes.keys()
    assert own.peft_settings not in [other.peft_settings for name, other in VARIANTS.items() if name != variant]


def test_is_on_the_base_device(variant):
    layer = LoRALinear(nn.Linear(IN, OUT, device="meta"), LoRAConfig(variant=variant))
    assert {tensor.device.type for tensor in (*layer.parameters(), *layer.buffers())} == {"meta"}
    stays = [name for name, value in vars(layer.adapter).items() if isinstance(value, torch.Tensor)]
    assert not stays, "neither parameter nor buffer, so it does not move with the layer"


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_is_the_merged_linear_layer(variant, bias, grad):
    layer = trained_layer(variant, bias=bias).double()
    x = torch.randn(2, 5, IN, dtype=torch.float64)
    merged = layer.adapter.merged(layer.weight, torch.float64)
    with torch.set_grad_enabled(grad):
        assert_equal_to_rounding(layer(x), F.linear(x, merged, layer.bias), IN)
    assert_equal_to_rounding(layer.weight + layer.delta_weight(torch.float64), merged, 4)


@pytest.mark.parametrize("bias", ["frozen", "trained", None])
def test_gradients_are_those_of_the_formula(variant, bias):
    layer = trained_layer(variant, bias=bias is not None).double()
    if bias == "trained":
        layer.bias.requires_grad_(True)
    x = torch.randn(2, 5, IN, dtype=torch.float64, requires_grad=True)
    expected = gradients(layer, by_formula(layer, x))
    expected_x, x.grad = x.grad, None
    got = gradients(layer, layer(x))
    own = {f"adapter.{name}" for name in layer.adapter.tensors()}
    assert got.keys() == expected.keys() == (own | {"bias"} if bias == "trained" else own)
    for name in expected:
        assert_equal_to_rounding(got[name], expected[name], 10 * OUT * IN)
    assert_equal_to_rounding(x.grad, expected_x, OUT * IN)


def test_gradients_are_finite_differences(variant):
    """But for a gain, which may be a constant to some parameters, as DoRA's norm is."""
    layer, x = trained_layer(variant).double(), torch.randn(5, IN, dtype=torch.float64)
    found, gain = gradients(layer, layer(x)), factors_of(layer).gain

    @torch.no_grad()
    def losses(parameter: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """With the gain as it follows from the parameter, and as it was."""
        parameter.add_(step)
        moved = factors_of(layer)
        outputs = [by_formula(layer, x, factors) for factors in (moved, moved._replace(gain=gain))]
        parameter.sub_(step)
        return torch.stack(outputs).square().sum((1, 2))

    for name, parameter in layer.adapter.tensors().items():
        step = 1e-5 * torch.randn_like(parameter)
        changes = (losses(parameter, step) - losses(parameter, -step)) / 2
        assert (found[f"adapter.{name}"] * step).sum().item() in map(pytest.approx, changes.tolist()), name


def test_an_input_without_gradient_gets_none(variant):
    layer, x = trained_layer(variant), torch.randn(4, IN)
    gradients(layer, layer(x))
    assert x.grad is None
    assert layer.weight.grad is None


@pytest.mark.parametrize("base_dtype", DTYPES[:2])
def test_autocast_computes_in_its_type_and_trains_in_fp32(variant, base_dtype):
    layer = trained_layer(variant, base_dtype)
    x = torch.randn(6, IN)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    merged = layer.adapter.merged(layer.weight)
    assert_equal_to_rounding(y, F.linear(x, merged, layer.bias.float()), IN, torch.bfloat16)
    assert all(gradient.dtype == torch.float32 for gradient in gradients(layer, y.float()).values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_merge_gives_the_same_and_unmerge_the_very_same(variant, dtype, bias):
    layer = trained_layer(variant, dtype, bias).eval()
    before, bits = layer.weight, layer.weight.clone()
    x = torch.randn(6, IN, dtype=dtype)
    unmerged, delta = layer(x), layer.delta_weight()
    layer.merge()
    assert layer.merged
    expected = layer.adapter.merged(bits).to(dtype)  # one rounding
    assert torch.equal(layer.merged_weight, expected)
    assert torch.equal(layer.delta_weight(), delta)
    assert_equal_to_rounding(layer(x), unmerged, IN)
    layer.merge()  # a second time changes nothing
    assert torch.equal(layer.merged_weight, expected)
    assert layer.weight is before
    assert torch.equal(layer.weight, bits)
    layer.unmerge()
    assert not layer.merged
    assert torch.equal(layer(x), unmerged)


@pytest.mark.parametrize("merged", [False, True])
def test_disable_lora_gives_the_base_and_then_the_layer_back(variant, merged):
    layer, x = trained_layer(variant), torch.randn(5, IN)
    with_lora, without = layer(x), F.linear(x, layer.weight, layer.bias)
    if merged:
        layer.merge()
    with pytest.raises(RuntimeError, match="inside"), disable_lora(layer):
        assert torch.equal(layer(x), without)
        raise RuntimeError("inside")
    assert_equal_to_rounding(layer(x), with_lora, IN)


def test_dropout_acts_on_the_branch_alone_and_only_in_training(variant):
    layer = trained_layer(variant, lora_dropout=0.5)
    base, x = layer.weight, torch.randn(4, IN)
    assert not torch.equal(layer(x), layer(x))
    with disable_lora(layer):
        assert torch.equal(layer(x), layer(x))
    assert torch.equal(layer.weight, base)
    fresh = LoRALinear(nn.Linear(IN, OUT), LoRAConfig(r=3, lora_dropout=0.5, variant=variant))
    assert torch.equal(fresh(x), fresh(x)), "the frozen product's input was dropped"
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_whole_and_independent(variant, copied, merged):
    layer = trained_layer(variant).eval()
    if merged:
        layer.merge()
    x = torch.randn(3, IN)
    twin = copied(layer)
    assert torch.equal(twin(x), layer(x))
    move(twin)
    twin.unmerge()
    assert not torch.equal(twin(x), layer(x))


def test_export_traces_the_layer(variant):
    layer, x, more = trained_layer(variant).eval(), torch.randn(4, IN), torch.randn(7, IN)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert_equal_to_rounding(exported.module()(more), layer(more), IN)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(variant, reentrant):
    layer, x = trained_layer(variant), torch.randn(4, IN, requires_grad=True)
    expected = gradients(layer, layer(x))
    got = gradients(layer, checkpoint(layer, x, use_reentrant=reentrant))
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def base_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).requires_grad_(False)


def config_of(variant: str, r: int = 2) -> LoRAConfig:
    return LoRAConfig(r=r, lora_alpha=3, target_modules=("0", "2"), variant=variant)


def trained_model(variant: str, **config) -> nn.Sequential:
    model = base_model()
    inject_lora(model, config_of(variant, **config))
    mark_only_lora_as_trainable(model)
    move(model)
    return model


def test_state_goes_there_and_back(variant):
    model, x = trained_model(variant), torch.randn(3, 6)
    state = {name: tensor.clone() for name, tensor in adapter_state_dict(model).items()}
    assert list(state) == [f"{layer}.{own}" for layer in ("0", "2") for own in VARIANTS[variant].axes]
    other = base_model()
    inject_lora(other, config_of(variant))
    load_adapter_state_dict(other, state)
    assert torch.equal(other(x), model(x))
    remove_lora(other)
    assert torch.equal(other(x), base_model()(x))


def test_a_whole_state_computes_the_same_over_another_base(variant):
    """What is kept of W_0 is brought up to date."""
    model, x, other = trained_model(variant), torch.randn(3, 6), base_model()
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    inject_lora(other, config_of(variant))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("grad", [True, False])
def test_a_bank_of_one_is_the_adapter_alone(variant, grad):
    model, x = trained_model(variant), torch.randn(1, 7, 6)
    bank = AdapterBank(base_model())
    bank.add("one", config_of(variant), adapter_state_dict(model))
    with bank.route(["one"], [7]), torch.set_grad_enabled(grad):
        assert torch.equal(bank.model(x), model(x))
    if grad:
        expected = list(gradients(model, model(x)).values())
        with bank.route(["one"], [7]):
            got = list(gradients(bank.model, bank.model(x)).values())
        for one, other in zip(got, expected, strict=True):
            assert_equal_to_rounding(one, other, 7 * 8)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_a_bank_mixes_it_with_all_others_sentence_by_sentence(variant, dtype):
    ranks = {name: 2 + number % 4 for number, name in enumerate(VARIANTS)}
    singles = {name: trained_model(name, r=rank) for name, rank in ranks.items()}
    bank = AdapterBank(base_model())
    for name, rank in ranks.items():
        bank.add(name, config_of(name, rank), adapter_state_dict(singles[name]))
    names, lengths = [variant, None, *VARIANTS, variant], [2, 3, *(1 for _ in VARIANTS), 4]
    x = torch.randn(1, sum(lengths), 6)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        with bank.route(names, lengths):
            together = bank.model(x)
        alone = [
            {**singles, None: base_model()}[name](part) for name, part in zip(names, x.split(lengths, 1), strict=True)
        ]
    assert_equal_to_rounding(together, torch.cat(alone, 1), 16, dtype)


def test_the_factors_in_a_bank_may_have_more_columns_than_the_rank(variant, monkeypatch):
    class Twice(VARIANTS[variant]):
        def factors(self, weight, dtype):
            a, b, scale, gain = super().factors(weight, dtype)
            return Factors(torch.cat([a, a]), torch.cat([b, b], 1), scale / 2, gain)

    monkeypatch.setitem(VARIANTS, "twice", Twice)
    model, x = trained_model(variant), torch.randn(1, 7, 6)
    bank = AdapterBank(base_model())
    for name in (variant, "twice"):
        bank.add(name, config_of(name), adapter_state_dict(model))
    with bank.route(["twice", variant, None], [4, 2, 1]):
        got = bank.model(x)
    assert_equal_to_rounding(got, torch.cat([model(x[:, :6]), base_model()(x[:, 6:])], 1), 16)
