"""LoRALinear and BankLinear as `nn.Linear`, for whatever it takes; dropout of 1; adapters that overflow."""

import copy
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lora_pl.encoder.dropout import BulkDropout, drop, drop_again
from lora_pl.encoder.features import FirstTokenFeatures
from lora_pl.encoder.loading import build_encoder
from lora_pl.encoder.packing import Packing
from lora_pl.errors import UserError
from lora_pl.formats.importing import checkpoint_of
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
    lora_layers,
    merged_lora,
)
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.model.many_adapters import ManyAdapters
from tests.support import assert_equal_to_rounding, rounding, tiny_config

FEW, MANY = 60, 3000
examples = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.attack)])
HALF = [torch.float16, torch.bfloat16]


def searched(count: int, **named: st.SearchStrategy):
    """The function, called with `count` drawn inputs."""

    def call(function):
        def seeded(seed: int, **drawn) -> None:
            torch.manual_seed(seed)
            function(**drawn)

        settings(max_examples=count, deadline=None, database=None)(given(seed=st.integers(0, 999), **named)(seeded))()

    return call


def moved(module: nn.Module) -> None:
    with torch.no_grad():
        for layer in lora_layers(module).values():
            for parameter in layer.adapter.tensors().values():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
layouts = st.sampled_from(["plain", "transposed", "strided", "expanded"])


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The numbers of x in memory of another layout."""
    if layout == "transposed" and x.dim() > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        return torch.stack([x, x], -1)[..., 0]
    if layout == "expanded" and x.dim() > 1 and x.shape[0]:
        return x[:1].expand_as(x)
    return x


@examples
def test_takes_what_a_linear_layer_takes(count):
    @searched(
        count,
        shape=shapes,
        layout=layouts,
        dtype=st.sampled_from([torch.float32, torch.float64, *HALF]),
        autocast=st.sampled_from([None, *HALF]),
        variant=st.sampled_from([*VARIANTS]),
        bias=st.sampled_from([None, "frozen", "trained"]),
        state=st.sampled_from(["apart", "merged", "merged here", "disabled"]),
        grad=st.booleans(),
        sizes=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    )
    def check(shape, layout, dtype, autocast, variant, bias, state, grad, sizes):
        base = nn.Linear(*sizes, bias=bias is not None, dtype=dtype).requires_grad_(False)
        if bias == "trained":
            base.bias.requires_grad_()
        layer = LoRALinear(base, LoRAConfig(r=1, variant=variant))
        if dtype == torch.float64:
            layer.adapter.double()
        moved(layer)
        x = laid_out(torch.randn(*shape, sizes[0], dtype=dtype), layout).requires_grad_(grad)
        whole = layer.weight if state == "disabled" else layer.adapter.merged(layer.weight, torch.float64)
        exact = F.linear(x.detach().double(), whole.double(), None if bias is None else base.bias.double())
        if state == "merged":
            layer.merge()
        with (
            torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None),
            {"merged here": merged_lora, "disabled": disable_lora}.get(state, lambda _: torch.enable_grad())(layer),
            torch.set_grad_enabled(grad),
        ):
            y, expected = layer(x), base(x)
        assert (y.shape, y.dtype, y.device) == (expected.shape, expected.dtype, expected.device)
        coarse = max([y.dtype, *([autocast] if autocast else [])], key=lambda d: torch.finfo(d).eps)
        if y.numel():
            scale = (x.detach().double().abs() @ whole.abs().t().double()).max().item() + 5
            if variant == "dora" and state != "disabled":  # a row that B A cancels has a norm without digits
                delta = layer.adapter.scale * layer.adapter.lora_B @ layer.adapter.lora_A
                parts, norm = layer.weight.norm(dim=1) + delta.norm(dim=1), (layer.weight + delta).norm(dim=1)
                scale *= (parts / norm).square().max().item()
            assert (y.double() - exact).abs().max() <= rounding(30, coarse, scale)
        if grad:
            (y.double() * 2).sum().backward()
            assert x.grad.shape == x.shape
            if bias == "trained":
                rows = y.numel() / sizes[1]
                assert_equal_to_rounding(base.bias.grad.double(), torch.full((sizes[1],), 2.0 * rows), 300, coarse)


@pytest.mark.parametrize("x", [torch.randn(()), torch.randn(3), torch.randn(2, 5), torch.ones(2, 4, dtype=torch.int64)])
@pytest.mark.parametrize("grad", [True, False])
def test_refuses_what_a_linear_layer_refuses(x, grad):
    layer = LoRALinear(nn.Linear(4, 4).requires_grad_(False), LoRAConfig(r=2))
    with torch.set_grad_enabled(grad), pytest.raises((RuntimeError, IndexError)):
        layer(x)


@examples
def test_a_bank_takes_what_a_linear_layer_takes(count):
    @searched(count, segments=st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.integers(0, 3)), max_size=5))
    def check(segments):
        names, lengths = [name for name, _ in segments], [length for _, length in segments]
        base = nn.Linear(5, 6).requires_grad_(False)
        bank = AdapterBank(nn.Sequential(base))
        for name, variant in zip("ab", VARIANTS, strict=False):
            bank.add(name, LoRAConfig(r=2, target_modules=("0",), variant=variant))
            for parameter in bank.parameters(name):
                nn.init.normal_(parameter)
        bank.model.double()
        x = torch.randn(1, sum(lengths), 5, dtype=torch.float64)
        with bank.route(names, lengths):
            y = bank.model(x)
        assert y.shape == (1, sum(lengths), 6)
        parts = zip(names, x.split(lengths, 1), y.split(lengths, 1), strict=True) if lengths else ()
        for name, own, got in parts:
            whole = bank.model[0].adapter(name).merged(base.weight, torch.float64) if name else base.weight
            torch.testing.assert_close(got, F.linear(own, whole, base.bias), rtol=1e-9, atol=1e-9)


def test_a_bank_takes_a_single_row():
    bank = AdapterBank(nn.Sequential(nn.Linear(5, 6).requires_grad_(False)))
    bank.add("a", LoRAConfig(r=2, target_modules=("0",)))
    x = torch.randn(5)
    with bank.route(["a"], [1]):
        assert torch.equal(bank.model(x), bank.model(x[None])[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_state_of_a_merged_model_is_that_of_the_model(variant):
    def made() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).requires_grad_(False)
        inject_lora(model, LoRAConfig(r=2, target_modules=("0", "1"), variant=variant))
        moved(model)
        return model

    model, other, x = made(), made(), torch.randn(4, 6)
    moved(other)
    state = copy.deepcopy(model.state_dict())
    for layer in lora_layers(model).values():
        layer.merge()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    unmerged = other(x)
    model.load_state_dict(other.state_dict())  # what is merged stays merged, with the new numbers
    assert all(layer.merged for layer in lora_layers(model).values())
    assert_equal_to_rounding(model(x), unmerged, 12)
    moved(other)
    load_adapter_state_dict(model, adapter_state_dict(other))
    assert_equal_to_rounding(model(x), other(x), 12)


def test_a_merge_in_inference_mode_can_be_trained_through():
    layer = LoRALinear(nn.Linear(4, 4).requires_grad_(False), LoRAConfig(r=2))
    with torch.inference_mode():
        layer.merge()
    x = torch.randn(2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert_equal_to_rounding(x.grad, layer.weight.sum(0).expand(2, 4), 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
def test_dropout_of_1_drops_everything_exactly(dtype):
    x = torch.tensor([[1.0, -2.0, torch.inf, torch.nan, 0.0]], dtype=dtype, requires_grad=True)
    y = BulkDropout(1.0)(x)
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))
    _, mask, _ = drop(x.detach(), 1.0)
    assert not drop_again(torch.ones_like(x), mask, 1.0).any()


@pytest.mark.parametrize("p", [1 - 2**-15, 1 - 1e-9])
def test_dropout_just_below_1_keeps_its_mean(p):
    y = BulkDropout(p)(torch.ones(2**20))
    assert y.any()
    assert y.max() == 2**15


@pytest.mark.parametrize("kind", ["roberta", "modernbert"])
def test_attention_dropout_of_1_in_a_configuration(kind):
    name = "attention_dropout" if kind == "modernbert" else "attention_probs_dropout_prob"
    encoder = build_encoder(tiny_config(kind, **{name: 1.0})).train()
    features = FirstTokenFeatures(encoder)
    ids = torch.randint(4, 60, (1, 7))
    got = features.of_packed(ids, ids * 0, Packing([3, 4]))
    got.square().sum().backward()
    assert got.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_dropout_of_1_on_a_branch_is_refused():
    with pytest.raises(LoRAError) as error:
        LoRAConfig(lora_dropout=1.0)
    assert error.value.key == "lora_dropout"


def overflowing(dtype: torch.dtype) -> float:
    """A number of fp32 that is inf in `dtype`."""
    return torch.finfo(torch.float32).max if dtype == torch.bfloat16 else 1e5


def bank_with(state_of_bad: float | None, where: str, dtype: torch.dtype, variant: str = "lora") -> AdapterBank:
    """Adapters `good` and `bad`, an entry of `bad` replaced after loading."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).requires_grad_(False).to(dtype)
    bank = AdapterBank(model)
    for name, rank in (("good", 2), ("bad", 3)):
        bank.add(name, LoRAConfig(r=rank, target_modules=("0", "1"), variant=variant))
        for parameter in bank.parameters(name):
            nn.init.normal_(parameter)
    if state_of_bad is not None:
        with torch.no_grad():
            bank.state_dict("bad")[f"0.{where}"].flatten()[1] = state_of_bad
    return bank


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("value", ["overflow", torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("where", ["lora_A", "lora_B", "lora_magnitude_vector"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("autocast", [False, True])
def test_what_overflows_stays_with_its_own_sentences(autocast, dtype, where, value, grad):
    variant = "dora" if where == "lora_magnitude_vector" else "lora"
    number = overflowing(dtype) if value == "overflow" else value
    lengths, names = [2, 3, 1], ["good", "bad", None]
    x = torch.randn(1, 6, 6)
    answers = []
    for bad in (None, number):
        bank = bank_with(bad, where, torch.float32 if autocast else dtype, variant)
        with (
            bank.route(names, lengths),
            torch.set_grad_enabled(grad),
            torch.autocast("cpu", dtype, enabled=autocast and dtype != torch.float32),
        ):
            answers.append(bank.model(x.to(bank.model[0].weight.dtype)))
    clean, broken = (answer[0, [0, 1, 5]] for answer in answers)
    assert torch.equal(clean, broken)
    if value != "overflow":
        assert not answers[1][0, 2:5].isfinite().all(), "an answer that is wrong does not say so"


@pytest.mark.parametrize("where", ["lora_A", "lora_B"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_what_the_base_can_not_hold_is_refused(dtype, where):
    bank = bank_with(None, where, dtype)
    kept = {name: tensor.clone() for name, tensor in bank.state_dict("bad").items()}
    state = {name: tensor.clone() for name, tensor in kept.items()}
    if where == "lora_A":  # times alpha / r
        number = 3e4 if dtype == torch.float16 else 3e38
    else:
        number = torch.inf if dtype == torch.float32 else overflowing(dtype)
    state[f"0.{where}"][1, 1] = number
    for change in (lambda: bank.load("bad", state), lambda: bank.add("new", bank.configs["bad"], state)):
        with pytest.raises(LoRAError) as error:
            change()
        assert error.value.key == "state"
        assert bank.names == ["good", "bad"]
        assert all(torch.equal(tensor, kept[name]) for name, tensor in bank.state_dict("bad").items())


@pytest.mark.parametrize("base_dtype", ["float16", "bfloat16", "float32"])
def test_others_answer_as_without_an_adapter_that_overflows(base_dtype, tiny_encoder, tmp_path):
    def written(name: str, value: float | None) -> str:
        torch.manual_seed(len(name))
        model = LoRAClassifier(encoder=tiny_encoder())
        moved(model)
        if value is not None:
            with torch.no_grad():
                next(iter(lora_layers(model).values())).adapter.lora_B[3, 1] = value
        torch.save(checkpoint_of(model), tmp_path / f"{name}.ckpt")
        return str(tmp_path / f"{name}.ckpt")

    good, huge = written("good", None), written("huge", 3e38 if base_dtype == "float32" else 3e4)
    models = ManyAdapters({"good": good, "huge": huge}, base_dtype=base_dtype)
    texts = ["the film is good", "dull", "the cast is awful", "fine"]
    ((batch, order),) = models.base.batches(models.base.tokenize([texts * 2], 64))

    def features(second: str | None) -> torch.Tensor:
        with (
            torch.inference_mode(),
            models.bank.route(["good" if place < 4 else second for place in order], batch.lengths),
        ):
            return models.base.features(batch)[[row for row, place in enumerate(order) if place < 4]]

    torch.testing.assert_close(features("huge"), features(None), rtol=0, atol=1e-5 if base_dtype == "float32" else 0.02)
    if base_dtype != "float32":
        with pytest.raises((LoRAError, UserError)):
            models.load_adapter("over", written("over", overflowing(DTYPES[base_dtype])))
        assert [*models.members] == ["good", "huge"]
        assert models.bank.names == ["good", "huge"]


DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("upstream", [1.0, torch.inf, torch.nan])
@pytest.mark.parametrize("value", [None, torch.inf, torch.nan, 1e38])
@pytest.mark.parametrize("where", ["lora_A", "lora_B", "lora_magnitude_vector"])
def test_others_learn_as_without_an_adapter_that_overflows(where, value, upstream, autocast, dropout):
    gradients = []
    for bad, factor in ((None, 1.0), (value, upstream)):
        bank = bank_with(bad, where, torch.float32, "dora" if where == "lora_magnitude_vector" else "lora")
        for layer in bank.layers.values():
            for name in bank.names:
                layer.adapter(name).lora_dropout.p = dropout
        x = torch.ones(1, 6, 6, requires_grad=True)
        torch.manual_seed(0)
        with bank.route(["good", "bad", None], [2, 3, 1]), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = bank.model(x)
        upper = torch.ones_like(y)
        upper[:, 2:5] *= factor
        y.backward(upper)
        gradients.append([x.grad[0, [0, 1, 5]], *(parameter.grad for parameter in bank.parameters("good"))])
        if factor != 1:
            assert not all(p.grad.isfinite().all() for p in bank.parameters("bad")), "an overflow that none can see"
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


ODD = {
    "sparse": torch.ones(6, 2).to_sparse(), "meta": torch.empty(6, 2, device="meta"), "none": None,
    "complex": torch.ones(6, 2, dtype=torch.complex64), "integers": torch.ones(6, 2, dtype=torch.int64),
    "list": [[1.0, 1.0]] * 6, "nested": torch.nested.nested_tensor([torch.ones(2)] * 6),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("change", [{"1.lora_B": odd} for odd in ODD.values()] + [{1: 1}, {None: 1}, {b"x": 1}])
def test_a_state_of_anything_else_is_refused_whole(change):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    inject_lora(model, LoRAConfig(r=2, target_modules=("0", "1")))
    before = {name: tensor.clone() for name, tensor in adapter_state_dict(model).items()}
    with pytest.raises(LoRAError) as error:
        load_adapter_state_dict(model, {name: tensor + 1 for name, tensor in before.items()} | change)
    assert error.value.key == "state"
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_state_dict(model).items())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("banked", [False, True])
def test_another_base_loaded_below_dora(banked, assign):
    def made() -> nn.Module:
        model = nn.Sequential(nn.Linear(6, 6)).requires_grad_(False)
        config = LoRAConfig(r=2, target_modules=("0",), variant="dora")
        AdapterBank(model).add("a", config) if banked else inject_lora(model, config)
        return model

    model, other = made(), made()
    model.load_state_dict(other.state_dict(), assign=assign)
    adapters = [next(m for m in one.modules() if isinstance(m, VARIANTS["dora"])) for one in (model, other)]
    assert torch.equal(adapters[0].base_norm, adapters[1].base_norm)


@pytest.mark.parametrize("variant", VARIANTS)
def test_compiles_to_one_graph_and_heeds_contexts(variant):
    torch._dynamo.reset()
    layer, x = LoRALinear(nn.Linear(4, 4).requires_grad_(False), LoRAConfig(r=2, variant=variant)), torch.randn(3, 4)
    moved(layer)
    with mock.patch("lora_pl.lora.layer._used", new=False):
        assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))
    compiled = torch.compile(layer, backend="eager")
    for context in (nullcontext, disable_lora, merged_lora, nullcontext):
        with context(layer):
            assert torch.equal(compiled(x), layer(x))


def test_a_compiled_classifier_answers_alike(tiny_encoder):
    torch._dynamo.reset()
    model = LoRAClassifier(encoder=tiny_encoder()).eval()
    moved(model)
    ((batch, _),) = model.base.batches(model.base.tokenize([["the film is good", "dull"]], 64))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="eager")(batch), model(batch))
