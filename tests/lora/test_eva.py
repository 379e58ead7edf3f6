"""EVA, for every variant: A is what torch.linalg.svd says of the gathered inputs, and nothing else changes."""

import pytest
import torch
from torch import nn

from lora_pl.lora import (
    VARIANTS,
    InputMoments,
    LoRAConfig,
    LoRAError,
    adapter_state_dict,
    eva_init,
    eva_matrices,
    inject_lora,
    lora_layers,
    remove_lora,
)
from lora_pl.lora.adapter import GAUSSIAN_STD
from lora_pl.lora.eva import distributed
from tests.support import assert_equal_to_rounding

IN = 12
TARGETS = ("query", "key", "up", "down")
LAYERS = {"query": (IN, 8), "key": (IN, 8), "up": (IN, 20), "down": (20, 6)}


class Block(nn.Module):
    """Query and key share an input; `up` has one of its own, and `down` as many rows as there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.up, self.down = (nn.Linear(*size) for size in LAYERS.values())
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positions = torch.ones(1, 7, IN)
        own = torch.tanh(5 * x) + self.key(positions).mean()  # the layer is applied to what is no token, too
        hidden = torch.tanh(self.up(own)).flatten(0, 1)
        self.seen = {"query": x, "key": x, "up": own, "down": hidden.view(*x.shape[:-1], -1)}
        return torch.cat([self.query(x).flatten(0, 1), self.key(x).flatten(0, 1), self.down(hidden)], -1)


def made(variant: str = "lora", **config) -> tuple[Block, LoRAConfig]:
    model = Block()
    found = LoRAConfig(**{"r": 2, "target_modules": TARGETS, "init": "eva", "variant": variant, **config})
    inject_lora(model, found)
    return model, found


def batches(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    scale = torch.linspace(0.1, 3, IN)
    return [(scale * torch.randn(4, 5 + i, IN), torch.rand(4, 5 + i) < 0.7) for i in range(count)]


def gathered(model: Block, data=None) -> tuple[InputMoments, dict[str, torch.Tensor]]:
    """The moments, and the inputs that count, (tokens, in) by layer."""
    moments, rows = InputMoments(model), {name: [] for name in TARGETS}
    for x, counted in data or batches():
        with moments.gathering(counted):
            model(x)
        for name in TARGETS:
            rows[name].append(model.seen[name][counted])
    return moments, {name: torch.cat(parts) for name, parts in rows.items()}


WITH_A_AND_B = [name for name, own in VARIANTS.items() if own.a_names() and own.b_names()]
each_variant = pytest.mark.parametrize("variant", WITH_A_AND_B)


@each_variant
@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_a_is_the_top_right_singular_vectors_and_the_model_computes_what_it_did(variant, rho):
    model, config = made(variant, eva_rho=rho)
    bare, x = Block(), batches(1)[0][0]
    moments, rows = gathered(model)
    state = torch.get_rng_state()
    ranked = eva_init(model, config, eva_matrices(config, moments))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(x), bare(x))
    for name, layer in lora_layers(model).items():
        a = layer.adapter.lora_A.detach()
        assert a.shape == (ranked.of_layers([name])[name].r, LAYERS[name][0])
        unit = a / (GAUSSIAN_STD * LAYERS[name][0] ** 0.5)
        *_, v = torch.linalg.svd(rows[name].double(), full_matrices=False)
        v = v[: len(a)].float()
        assert_equal_to_rounding(unit, v * (v * a).sum(1, keepdim=True).sign(), 64)
        assert_equal_to_rounding(unit @ unit.T, torch.eye(len(a)), 64)
        assert a.square().mean().sqrt().item() == pytest.approx(GAUSSIAN_STD, rel=1e-6)
        assert (a.gather(1, a.abs().argmax(1, keepdim=True)) > 0).all()
        assert not layer.adapter.lora_B.any()


@each_variant
def test_what_has_no_rank_is_kept_where_ranks_change(variant):
    model, config = made(variant, eva_rho=2, lora_dropout=0.5)
    before = {name: layer.adapter for name, layer in lora_layers(model).items()}
    eva_init(model, config, eva_matrices(config, gathered(model)[0]))
    resized = {name: layer.adapter for name, layer in lora_layers(model).items() if layer.adapter is not before[name]}
    assert resized
    for name, adapter in resized.items():
        assert adapter.lora_dropout is before[name].lora_dropout
        assert adapter.training
        own = {**dict(before[name].named_parameters()), **dict(before[name].named_buffers())}
        for key, tensor in (*adapter.named_parameters(), *adapter.named_buffers()):
            assert "r" in adapter.axes.get(key, ()) or torch.equal(tensor, own[key])


def test_the_same_inputs_give_the_same_bits_and_batches_do_not_matter():
    data = batches()
    sentences = [(x[i : i + 1], counted[i : i + 1]) for x, counted in data for i in range(len(x))]
    one, other, alone = (eva_matrices(made()[1], gathered(made()[0], given)[0]) for given in (data, data, sentences))
    for name in TARGETS:
        assert torch.equal(one[name], other[name])
        assert_equal_to_rounding(one[name], alone[name], 64)


def test_explained_variances_are_those_of_the_inputs_and_sum_to_one():
    moments, rows = gathered(made()[0])
    for name, found in moments.directions(100).items():
        squares = torch.linalg.svdvals(rows[name].double()).square()
        assert_equal_to_rounding(found.shares, squares / squares.sum(), 64)
        assert abs(found.shares.sum() - 1) < 1e-12
        assert found.rank == LAYERS[name][0]


def test_layers_of_one_input_share_one_sum():
    moments, _ = gathered(made()[0])
    found = moments.directions(2)
    assert found["query"] is found["key"]
    assert set(moments.rows) == {"query", "up", "down"}
    assert len(set(moments.rows.values())) == 1


def test_every_token_counts_where_none_is_said_not_to():
    model, _ = made(target_modules=("query", "down"))
    moments = InputMoments(model)
    with moments.gathering():
        model(torch.randn(2, 3, IN))
    assert moments.rows == {"query": 6, "down": 6}


@pytest.mark.parametrize("scaling", ["standard", "rslora"])
@pytest.mark.parametrize("rho", [1.5, 2.0, 9.0])
def test_ranks_are_distributed_within_the_budget_at_the_same_scale(rho, scaling):
    model, config = made(r=3, eva_rho=rho, scaling=scaling, alpha_pattern={"up": 5.0})
    scales = {name: layer.adapter.scale for name, layer in lora_layers(model).items()}
    moments, _ = gathered(model)
    ranked = eva_init(model, config, eva_matrices(config, moments))
    layers = lora_layers(model)
    ranks = {name: layer.adapter.r for name, layer in layers.items()}
    assert sum(ranks.values()) == 3 * len(TARGETS)
    assert all(1 <= r <= min(rho * 3, *LAYERS[name]) for name, r in ranks.items())
    assert len(set(ranks.values())) > 1
    for name, layer in layers.items():
        assert layer.adapter.scale == pytest.approx(scales[name], rel=1e-15)
    # what is chosen explains more than what is not, where the limit allows it
    shares = {name: found.shares for name, found in moments.directions(100).items()}
    least = min(shares[name][r - 1] for name, r in ranks.items() if r > 1)
    assert all(shares[n][r] <= least for n, r in ranks.items() if r < int(min(rho * 3, *LAYERS[n])))
    # the configuration says it all: another model takes the state without data
    again = Block()
    inject_lora(again, ranked)
    assert not ranked.distributes_ranks
    shapes = {name: tensor.shape for name, tensor in adapter_state_dict(model).items()}
    assert {name: tensor.shape for name, tensor in adapter_state_dict(again).items()} == shapes
    assert {name: layer.adapter.scale for name, layer in lora_layers(again).items()} == {
        name: layer.adapter.scale for name, layer in layers.items()
    }


def test_a_rank_pattern_that_is_given_stays():
    model, config = made(eva_rho=2, rank_pattern={"query": 5})
    assert eva_init(model, config, eva_matrices(config, gathered(model)[0])) == config
    assert {name: layer.adapter.r for name, layer in lora_layers(model).items()} == {
        "query": 5, "key": 2, "up": 2, "down": 2}  # fmt: skip


def test_a_name_that_is_the_end_of_anothers():
    model = nn.ModuleDict({"fc": nn.Linear(8, 8), "block": nn.ModuleDict({"fc": nn.Linear(8, 8)})})
    config = LoRAConfig(r=3, target_modules=("fc",), init="eva", eva_rho=2)
    for ranks in ({"fc": 2, "block.fc": 4}, {"fc": 5, "block.fc": 3}):
        inject_lora(model, config)
        eva_init(model, config, {name: torch.eye(8)[:r] for name, r in ranks.items()})
        assert {name: layer.adapter.r for name, layer in lora_layers(model).items()} == ranks
        remove_lora(model)


def test_equal_shares_go_to_the_first_layers():
    same = torch.tensor([0.7, 0.2, 0.1])
    assert distributed({"a": same, "b": same}, 2) == {"a": 2, "b": 2}
    assert distributed({"a": same, "b": same, "c": same[:1]}, 2) == {"a": 3, "b": 2, "c": 1}


def low_rank(directions: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(2)
    x = torch.randn(4, 20, directions) @ torch.randn(directions, IN)
    return [(x, torch.ones(4, 20, dtype=torch.bool))]


def test_inputs_of_too_low_a_rank_are_refused_and_get_few_of_the_distributed_ranks():
    model, config = made(r=4, target_modules=("query", "up"))
    moments = InputMoments(model)
    for x, counted in low_rank(3):
        with moments.gathering(counted):
            model.query(x)
            model.up(torch.randn(4, 20, IN))
    with pytest.raises(LoRAError) as error:
        eva_matrices(config, moments)
    assert error.value.key == "eva_batches"
    assert "query" in str(error.value)
    spread = LoRAConfig(**{**config.to_dict(), "eva_rho": 2})
    assert {name: len(a) for name, a in eva_matrices(spread, moments).items()} == {"query": 3, "up": 5}
    greedy = LoRAConfig(**{**config.to_dict(), "r": 8, "eva_rho": 1.5})
    with pytest.raises(LoRAError):
        eva_matrices(greedy, moments)


@pytest.mark.parametrize("rho", [1.0, 2.0])
@pytest.mark.parametrize("data", [[], [(torch.randn(1, 1, IN),) * 1], "nan"])
def test_too_few_tokens_none_and_nan_are_one_error(rho, data):
    model, config = made(eva_rho=rho)
    moments = InputMoments(model)
    given = [(torch.full((1, 9, IN), torch.nan),)] if data == "nan" else data
    for (x,) in given:
        with moments.gathering(torch.ones(x.shape[:2], dtype=torch.bool)):
            model(x)
    with pytest.raises(LoRAError, match="^eva_batches: "):
        eva_matrices(config, moments)


def test_hooks_are_removed_after_an_error():
    model, _ = made()
    moments = InputMoments(model)
    with pytest.raises(ZeroDivisionError), moments.gathering():
        raise ZeroDivisionError
    model(torch.randn(2, 3, IN))
    assert not moments.rows
    assert not any(layer._forward_pre_hooks for layer in lora_layers(model).values())


def test_a_trained_adapter_is_left_alone():
    model, config = made()
    matrices = eva_matrices(config, gathered(model)[0])
    nn.init.ones_(lora_layers(model)["up"].adapter.lora_B)
    before = {name: tensor.clone() for name, tensor in adapter_state_dict(model).items()}
    with pytest.raises(LoRAError, match="^adapter: "):
        eva_init(model, config, matrices)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_state_dict(model).items())


@pytest.mark.parametrize(("field", "value"), [
    ("eva_rho", 0.5), ("eva_rho", float("inf")), ("eva_rho", "2"), ("eva_batches", 0), ("eva_batches", 1.5),
])  # fmt: skip
def test_options_out_of_range(field, value):
    with pytest.raises(LoRAError, match=f"^{field}: "):
        LoRAConfig(**{field: value})
