"""A short row's attention in one launch, as on a GPU, and what a training step then does."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora_pl import LoRAClassifier
from lora_pl.data.batches import TokenDataset
from lora_pl.encoder import EMBEDDED, attention, dropout
from lora_pl.encoder.attention import packed_attention
from lora_pl.encoder.packing import Packing
from lora_pl.encoder.rectangle import SHORT, UNIT
from tests.data.test_batches import make_tokens
from tests.support import rounding


def attend(x, packing, window=None, p=0.0):
    return packed_attention(nn.Module(), *x, None, dropout=p, packing=packing, sliding_window=window)[0]


@pytest.fixture
def on_gpu(monkeypatch):
    """The path of a GPU, on the CPU."""
    monkeypatch.setattr(attention, "_in_rectangle", lambda packing: packing.short)
    monkeypatch.setattr(dropout, "draws_in_bulk", lambda x: False)


@pytest.mark.parametrize("filler", [0, 1, 70])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("lengths", [[4, 1, 5], [UNIT], [UNIT + 1, 2]])
def test_it_is_grouped_attention(lengths, window, filler, monkeypatch):
    def values_and_gradients(way):
        monkeypatch.setattr(attention, "_in_rectangle", lambda packing: way == "rectangle")
        x = [part.clone().requires_grad_() for part in given]
        y = attend(x, Packing(lengths, filler=filler), window)[:, : sum(lengths)]
        (y * weights).sum().backward()
        return y, *(part.grad for part in x)

    given = torch.randn(3, 1, 2, sum(lengths) + filler, 8)
    weights = torch.randn(1, sum(lengths), 2, 8)
    expected = values_and_gradients("groups")
    for got, one in zip(values_and_gradients("rectangle"), expected, strict=True):
        torch.testing.assert_close(got, one, rtol=0, atol=rounding(8 * max(lengths), scale=one.abs().max().item()))


def test_its_gradient_under_dropout_by_finite_differences(on_gpu):
    x = [torch.randn(1, 2, 9, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    packing = Packing([2, 5], filler=2)

    def dropped(*x):
        torch.manual_seed(5)
        return attend(x, packing, p=0.3)[:, :7]

    assert torch.autograd.gradcheck(dropped, x)
    assert not torch.allclose(attend(x, packing)[:, :7], dropped(*x))


def test_it_is_for_short_rows_on_a_gpu():
    class Row:
        device, short, static = torch.device("cuda"), True, False

    assert attention._in_rectangle(Row)
    Row.short = False
    assert not attention._in_rectangle(Row)
    assert not attention._in_rectangle(Packing([3]))
    assert Packing([SHORT, 2], filler=2 * SHORT).short
    assert not Packing([SHORT + 1, 2]).short


class Operations(TorchDispatchMode):
    """Notes every operation with its sizes, and those whose result the processor waits for."""

    def __init__(self):
        super().__init__()
        self.found, self.waits = [], []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        flat = torch.utils._pytree.tree_leaves((args, kwargs))
        sizes = [tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in flat]
        self.found.append((str(operation), [x for x in sizes if isinstance(x, tuple | int)]))
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(operation.tags):
            self.waits.append(str(operation))
        return operation(*args, **(kwargs or {}))


def fresh():
    torch.manual_seed(0)
    return LoRAClassifier(encoder=EMBEDDED).train()


def steps(model, batches, watch=Operations):
    """A training step per batch, loss and optimizer included; the operations of each, as the class notes them."""
    optimizer = torch.optim.AdamW(model.parameter_groups(), fused=True)
    for batch in batches:
        with watch() as operations:
            model.loss(model(batch), batch.labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        yield operations


def test_a_step_does_the_same_whatever_the_lengths_and_reads_nothing_back(on_gpu):
    tokens = make_tokens([5, 9, 31, 3, 7, 8, 8, 8, 8, 22])
    tokens.labels[:] %= 2
    data = TokenDataset(tokens, "packed", 1)
    batches = [data[rows] for rows in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [4, 9, 8, 5, 1])]
    assert {batch.input_ids.shape for batch in batches} == {(1, 56)}
    assert {batch.tokens for batch in batches} == {54, 55}
    warm_up, *rest = steps(fresh(), [batches[0], *batches])  # the first step makes gradients and the optimizer's state
    assert len(warm_up.found) > 100
    first, *others = (step.found for step in rest)
    assert all(other == first for other in others)
    assert [step.waits for step in rest] == [[]] * 3


def test_groups_depend_on_the_lengths():
    """What the test above would not pass: the CPU's way."""
    tokens = make_tokens([60, 2, 2, 2, 2, 14, 14, 13, 14, 13])
    tokens.labels[:] %= 2
    data = TokenDataset(tokens, "packed", 1)
    _, one, other = steps(fresh(), [data[[0, 1, 2, 3, 4]]] * 2 + [data[[5, 6, 7, 8, 9]]])
    assert one.found != other.found


def test_a_number_that_is_read_back_is_noted():
    with Operations() as operations:
        torch.ones(2).sum().item()
    assert operations.waits == ["aten._local_scalar_dense.default"]


@pytest.mark.parametrize("rectangle", [True, False])
def test_every_tensor_of_a_step_is_on_the_rows_device(rectangle, monkeypatch):
    """On the device `meta`, where operations refuse tensors of another, as a GPU does."""
    monkeypatch.setattr(attention, "_in_rectangle", lambda packing: rectangle)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # meta knows no autocast
    model = LoRAClassifier(encoder=EMBEDDED).to("meta").train()
    batch = TokenDataset(make_tokens([5, 9, 31, 3]), "packed", 1)[[0, 1, 2, 3]].to("meta")
    model.head(model.base.features(batch)).sum().backward()
    assert {p.grad.device.type for p in model.parameters() if p.requires_grad} == {"meta"}
