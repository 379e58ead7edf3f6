import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lora_pl.encoder.dropout import BulkDropout, drop, drop_again, use_bulk_dropout

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_drops_the_share_and_keeps_the_mean(dtype, p):
    x = torch.ones(1001, 999, dtype=dtype)
    y = BulkDropout(p)(x)
    dropped = (y == 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-15)
    assert y[y != 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-2)
    assert y.double().mean().item() == pytest.approx(1, abs=1e-2)


def test_elements_are_dropped_independently():
    kept = (BulkDropout(0.3)(torch.ones(4000, 64)) != 0).float()
    correlations = torch.corrcoef(kept.T).fill_diagonal_(0)
    assert correlations.abs().max() < 5 / 4000**0.5
    next_row = torch.corrcoef(torch.stack([kept[1:].ravel(), kept[:-1].ravel()]))[0, 1]
    assert next_row.abs() < 5 / kept.numel() ** 0.5


def test_the_gradient_has_the_same_mask():
    x = torch.randn(50, 7, requires_grad=True)
    y = BulkDropout(0.4)(x)
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)
    torch.testing.assert_close(x.grad * x, y)


def test_a_mask_can_be_applied_again():
    x = torch.randn(9, 5)
    y, mask, scale = drop(x, 0.5)
    assert torch.equal(drop_again(x, mask, 0.5), y)
    assert torch.equal(y[y != 0], x[y != 0])
    assert scale == 2


def test_seeds_hold_and_draws_differ():
    x = torch.ones(100)
    layer = BulkDropout(0.5)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_draws_the_same_again(reentrant):
    layer = nn.Sequential(nn.Linear(6, 6), BulkDropout(0.5), nn.Linear(6, 6))
    x = torch.randn(4, 6, requires_grad=True)
    gradients = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        torch.manual_seed(0)
        layer.zero_grad()
        run(x).square().sum().backward()
        gradients.append(layer[0].weight.grad.clone())
    assert torch.equal(*gradients)


def test_does_nothing_in_eval_mode_or_at_zero():
    x = torch.randn(5)
    assert torch.equal(BulkDropout(0.5).eval()(x), x)
    assert torch.equal(BulkDropout(0.0)(x), x)


def test_takes_the_place_of_every_dropout():
    model = nn.Sequential(nn.Dropout(0.1), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2).eval()))
    use_bulk_dropout(model)
    assert [(type(m), m.p, m.training) for m in (model[0], model[1][1])] == [
        (BulkDropout, 0.1, True),
        (BulkDropout, 0.2, False),
    ]
