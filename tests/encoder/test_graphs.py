"""Packed rows by CUDA graphs: PyTorch's own capture, over graphs that run on the CPU."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from lora_pl import LoRAClassifier, LoRAConfig, SentenceDataModule
from lora_pl.data.batches import TokenDataset
from lora_pl.encoder import EMBEDDED, attention, dropout, graphs
from lora_pl.encoder.architectures import ARCHITECTURES
from lora_pl.encoder.packing import Packing
from lora_pl.errors import UserError
from lora_pl.model import base
from tests.data.test_batches import make_tokens
from tests.encoder.test_rectangle import steps
from tests.training.test_operations import Operations

CAPTURED = [kind for kind, row in ARCHITECTURES.items() if row.packed and not row.reads_back]


class Graph(TorchDispatchMode):
    """A CUDA graph on the CPU: notes what is computed, and on which memory; a replay does it again on the same."""

    count = replays = 0

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.noted.append((operation, args, kwargs or {}, result))
        return result

    def replay(self):
        Graph.replays += 1
        with _disable_current_modes():  # a launch is no operation
            self._replay()

    def _replay(self):
        for operation, args, kwargs, result in self.noted:
            for place, new in zip(tree_leaves(result), tree_leaves(operation(*args, **kwargs)), strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != new.data_ptr():  # no view, not in place
                    place.copy_(new)


@contextmanager
def captured(graph, pool):
    Graph.count += 1
    assert pool == POOL
    assert not torch.is_autocast_cache_enabled(), "a graph would not cast again what was cast before"
    with graph:
        yield


POOL = object()


def batches(*rows, lengths=(5, 9, 31, 3, 7, 8, 8, 8, 8, 22)):
    tokens = make_tokens(list(lengths))
    tokens.ids[:], tokens.labels[:] = tokens.ids % 56 + 4, tokens.labels % 2
    data = TokenDataset(tokens, "packed", 1)
    return [data[list(row)] for row in rows]


SAME = ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [4, 9, 8, 5, 1])
"""Rows of one shape."""


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """What `torch.cuda.make_graphed_callables` asks of a GPU."""
    monkeypatch.setattr(Graph, "count", 0)
    monkeypatch.setattr(Graph, "replays", 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", captured)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: POOL)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", type("Stream", (), {}))
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(dropout, "draws_in_bulk", lambda x: False)
    monkeypatch.setattr(base, "cuda_graphs", lambda device: graphs.cuda_graphs(torch.device("cuda")))


@pytest.fixture
def without(monkeypatch):
    """A GPU's way of attention, on the CPU."""
    monkeypatch.setattr(attention, "_in_rectangle", lambda packing: packing.short)


def made(encoder=EMBEDDED, **settings) -> LoRAClassifier:
    torch.manual_seed(0)
    model = LoRAClassifier(encoder=encoder, **settings).train()
    for name, parameter in model.encoder.named_parameters():
        if "lora_B" in name:  # else A has no gradient yet
            nn.init.normal_(parameter, std=0.02)
    return model


def accumulated(model, rows) -> dict[str, torch.Tensor]:
    """The gradients of several batches."""
    torch.manual_seed(1)
    for batch in rows:
        model.loss(model(batch), batch.labels).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    return found


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


TRAINED = {
    "LoRA": {"lora": LoRAConfig(r=2, target_modules="all-linear", lora_dropout=0.1)},
    "DoRA": {"lora": LoRAConfig(r=2, variant="dora")},
    "biases and norms": {"train_biases": "all", "train_norms": True},
    "bf16": {"base_dtype": "bfloat16"},
    "everything": {"method": "full"},
}


@pytest.mark.parametrize("what", TRAINED)
def test_gradients_are_those_without_graphs(what, without):
    """To the last bit, dropout's draws included, and accumulated over batches as a user may."""
    model, rows = made(**TRAINED[what]), batches(*SAME)
    expected = accumulated(model, rows)
    assert all(gradient.any() for gradient in expected.values())
    model.base.use_graphs()
    assert_same(accumulated(model, rows), expected)
    assert (Graph.count, Graph.replays) == (2, 6)


@pytest.mark.parametrize("kind", CAPTURED)
def test_every_encoder_can_be_captured(kind, tiny_encoder, without):
    """Windows and token types included; a graph that has seen other rows gives what it gave at first."""
    model, rows = made(tiny_encoder(kind)), batches(*SAME)
    expected = accumulated(model, rows)
    model.base.use_graphs()
    assert_same(accumulated(model, rows), expected)
    assert_same(accumulated(model, rows), expected)
    assert (Graph.count, Graph.replays) == (2, 12)


class OfHost(TorchDispatchMode):
    """Notes operations on tensors in the CPU's memory, which a capture forbids."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        tensors = (x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor))
        if any(x.device.type == "cpu" for x in tensors):
            self.found.append(str(operation))
        return result


@pytest.mark.parametrize("kind", CAPTURED)
def test_a_capture_touches_nothing_of_the_host(kind, tiny_encoder, monkeypatch):
    """On the device `meta`: once the packing is on the device, everything a row needs is."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # meta knows no autocast
    model = LoRAClassifier(encoder=tiny_encoder(kind)).to("meta").train()
    batch = batches(*SAME)[0].to("meta")
    packing = Packing(batch.lengths, "meta", batch.filler)
    packing.static = True
    found = []
    for _ in range(2):
        with OfHost() as host:
            model.base._of_packed(batch.input_ids, batch.token_type_ids, packing).sum().backward()
        found.append(host.found)
    assert found[0], "the packing's tensors are copied to the device"
    assert not found[1]


def test_few_operations_are_left_beside_the_graphs():
    """The row's tensors and its gradient copied, head, loss and optimizer: as many for any encoder."""
    model, rows = made(), batches(*SAME)
    model.base.use_graphs()
    *_, operations = steps(model, rows, Operations)
    assert Graph.replays == 6
    assert operations.counts.total() <= 45, operations.counts


def test_each_shape_has_its_graph_up_to_a_number(monkeypatch):
    monkeypatch.setattr(graphs, "MOST", 2)
    model = made()
    model.base.use_graphs()
    for rows, count, replays in (
        ([0, 1, 3], 1, 1),  # 17 tokens
        ([0, 1, 2], 2, 2),  # 45
        ([1, 0, 3], 2, 3),
        ([5, 6], 2, 3),  # a third shape
    ):
        accumulated(model, batches(rows))
        assert (Graph.count, Graph.replays) == (2 * count, 2 * replays)


def test_other_rows_and_evaluation_are_computed_without(monkeypatch):
    monkeypatch.setattr("lora_pl.encoder.packing.SHORT", 40)
    model = made()
    model.base.use_graphs()
    short, single, padded, long = (
        *batches([0, 1, 2], [3]),
        batches([0, 1])[0].padded(1),
        batches([0, 1], lengths=[41, 5])[0],
    )
    for batch in (single, padded, long):
        accumulated(model, [batch])
    with torch.no_grad():
        model(short)
    model.eval()
    model(short)
    assert Graph.count == 0
    model.train()
    model(short)
    assert Graph.count == 2


@pytest.mark.parametrize("together", [1, 2])
def test_a_run_ends_with_the_weights_of_one_without_graphs(together, tiny_encoder, glue_folder, tmp_path, without):
    def trained(**settings):
        data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
        model = LoRAClassifier.for_data(data, learning_rate=1e-2, **settings)
        run_of(tmp_path, together).fit(model, data)
        assert model.base.graphs is None
        return model.state_dict()

    expected = trained()
    assert Graph.count == 0
    assert_same(trained(graphs=True), expected)
    assert 0 < Graph.count < Graph.replays == 24


def run_of(folder, together=1) -> Trainer:
    return Trainer(
        default_root_dir=folder, accelerator="cpu", precision="32-true", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, max_epochs=2, accumulate_grad_batches=together,
    )  # fmt: skip


def test_a_run_that_fails_frees_them(tiny_encoder, glue_folder, tmp_path):
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
    model = LoRAClassifier.for_data(data, graphs=True)
    model.head.register_forward_hook(lambda *given: given[-1] * float("nan") if Graph.replays else None)
    with pytest.raises(UserError, match=r"^model.nonfinite_loss: "):
        run_of(tmp_path).fit(model, data)
    assert Graph.replays
    assert model.base.graphs is None


@pytest.mark.parametrize(("batching", "why"), [("packed", "need a GPU, and this run is on cpu"), ("padded", "padded")])
def test_a_run_that_has_no_use_for_them_says_so(batching, why, tiny_encoder, glue_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "cuda_graphs", graphs.cuda_graphs)
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batching=batching)
    with pytest.raises(UserError, match=f"^model.graphs: .*{why}"):
        run_of(tmp_path).fit(LoRAClassifier.for_data(data, graphs=True), data)


@pytest.mark.parametrize(
    ("kind", "method", "why"),
    [("xmod", "lora", "xmod reads back from the GPU"), ("roberta", "head", ".* it is frozen")],
)
def test_an_encoder_that_cant_be_captured_or_trained_has_none(kind, method, why, tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder(kind), method=method)
    with pytest.raises(UserError, match=f"^model.graphs: {why}"):
        model.base.use_graphs()
