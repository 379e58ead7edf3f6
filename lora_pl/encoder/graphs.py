"""CUDA graphs of an encoder's forward and backward over packed rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from lora_pl.encoder.packing import Packing
from lora_pl.errors import UserError

Compute = Callable[[Tensor, Tensor, Packing], Tensor]
"""(1, tokens) ids, (1, tokens) types and their packing -> (segments, hidden)."""
Capture = Callable[..., Callable[..., Tensor]]
"""As `torch.cuda.make_graphed_callables`: a function of tensors and a sample of them -> the same function by graphs."""
MOST = 64
"""Shapes that have graphs; a row of another shape is computed without."""


def cuda_graphs(device: torch.device) -> Capture:
    """Captures graphs that share their memory: a step's forward and backward are over before the next step's.

    Raises:
        UserError: `model.graphs`: it is no GPU.
    """
    if device.type != "cuda":
        raise UserError("model.graphs", f"CUDA graphs need a GPU, and this run is on {device.type}; leave it out")
    return cast(Capture, partial(torch.cuda.make_graphed_callables, pool=torch.cuda.graph_pool_handle()))


class GraphedRows:
    """Computes packed rows by CUDA graphs, two for each shape: one launch forward and one backward.

    A graph reads and writes the same memory each time. So the row's tensors are copied to where it reads, what is
    trained enters as one tensor, and that one's gradient is copied out of the graph, where the next backward would
    overwrite it (pytorch#181723): gradients accumulate as they do without graphs.

    Args:
        encoder: In train mode. Its frozen weights stay where they are.
        compute: Computes a row with the encoder; it copies nothing to the device once it has seen the packing, and
            reads nothing back.
        capture: Makes the graphs.
    """

    def __init__(self, encoder: nn.Module, compute: Compute, capture: Capture) -> None:
        self._row, self._capture = _Row(encoder, compute), capture
        trained = {name: parameter for name, parameter in self._row.named_parameters() if parameter.requires_grad}
        self._names, self._trained = list(trained), list(trained.values())
        self._graphs: dict[tuple[int, int, int], tuple[Callable[..., Tensor], Packing]] = {}

    def __call__(self, input_ids: Tensor, token_type_ids: Tensor, packing: Packing) -> Tensor:
        """As `compute`, for a short row, whose packing becomes `static`."""
        packing.static = True
        trained = cast(Tensor, _Joined.apply(*self._trained))  # type: ignore[no-untyped-call]
        shape = input_ids.shape[1], len(packing.lengths), packing.width
        with _no_cached_casts(input_ids.device.type):
            if shape not in self._graphs and len(self._graphs) < MOST:
                self._graphs[shape] = self._captured(packing, trained, input_ids, token_type_ids)
            if shape not in self._graphs:
                return self._compute(packing, trained, input_ids, token_type_ids)
            graph, sample = self._graphs[shape]
            return graph(trained, input_ids, token_type_ids, *packing.tensors(sample))

    def _captured(self, packing: Packing, *tensors: Tensor) -> tuple[Callable[..., Tensor], Packing]:
        """The graphs for rows such as this one, and its packing, whose tensors they read."""
        trained, *own = (tensor.detach().clone() for tensor in tensors)
        gpus = [trained.device] if trained.is_cuda else []
        with torch.random.fork_rng(gpus):  # what is drawn here is no step's
            with torch.no_grad():
                self._compute(packing, trained, *own)  # fills the packing
            sample = (trained.requires_grad_(), *own, *packing.tensors(packing))
            return self._capture(partial(self._compute, packing), sample), packing

    def _compute(self, packing: Packing, trained: Tensor, input_ids: Tensor, types: Tensor, *_: Tensor) -> Tensor:
        parts = torch.split(trained, [parameter.numel() for parameter in self._trained])
        own = {name: part.view_as(p) for name, part, p in zip(self._names, parts, self._trained, strict=True)}
        return cast(Tensor, functional_call(self._row, own, (input_ids, types, packing)))


class _Row(nn.Module):
    """`compute` as the forward of a module with the encoder in it, whose parameters can then be others."""

    def __init__(self, encoder: nn.Module, compute: Compute) -> None:
        super().__init__()
        self.encoder, self.compute = encoder, compute

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, packing: Packing) -> Tensor:
        return self.compute(input_ids, token_type_ids, packing)


class _Joined(torch.autograd.Function):
    """Tensors of one type side by side in one; their gradients are copies."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.shapes = [tensor.shape for tensor in tensors]
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        parts = torch.split(grad.clone(), [shape.numel() for shape in ctx.shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True))


@contextmanager
def _no_cached_casts(kind: str) -> Iterator[None]:
    """Autocast as it is, but for casts kept from one use to the next, which a graph would not cast again."""
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    with torch.autocast(kind, dtype, enabled, cache_enabled=False):
        yield
