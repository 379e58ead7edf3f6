"""EVA: A from the inputs of each layer (Paischer et al., 2024)."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lora_pl.lora.adapter import GAUSSIAN_STD
from lora_pl.lora.config import LoRAConfig
from lora_pl.lora.errors import LoRAError
from lora_pl.lora.injection import resize_lora
from lora_pl.lora.layer import lora_layers


class Directions(NamedTuple):
    """The inputs X (tokens, in) of a layer by their right singular vectors."""

    vectors: Tensor
    """(k, in), fp64 on the CPU: unit rows, the largest singular value first, the largest entry of each row positive."""
    shares: Tensor
    """(k,): explained variance, sigma_i^2 / ||X||^2; over all directions it sums to 1."""
    rank: int
    """How many singular values of X are not zero, to the rounding of fp32."""


class InputMoments:
    r"""The sum of :math:`x^T x` over the inputs x of each adapted layer, (in, in), in fp64.

    With a layer's inputs as the rows of :math:`X = U S V^T`, the sum is :math:`X^T X = V S^2 V^T`: its eigenvectors are
    the right singular vectors of X, its eigenvalues their squared singular values. So the memory does not grow with the
    data, and there is no convergence to test, as in the incremental SVD of the paper. X is not centered.

    Layers that are given the same tensor one after the other (query, key, value) share one sum.

    Example:
        >>> model, config = nn.Sequential(nn.Linear(8, 8)), LoRAConfig(r=2, target_modules=("0",), init="eva")
        >>> names, moments = inject_lora(model, config), InputMoments(model)
        >>> with moments.gathering(torch.tensor([[True, True, False]])):  # the last token is padding
        ...     _ = model(torch.randn(1, 3, 8))
        >>> config = eva_init(model, config, eva_matrices(config, moments))

    Args:
        model: Has LoRA injected.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = lora_layers(model)
        self.rows: Counter[str] = Counter()
        """Tokens by layer, of those that do not share another's sum."""
        self._sums: dict[str, Tensor] = {}
        self._owners: dict[str, str] = {}
        self._last: tuple[str, Tensor] | None = None

    @contextmanager
    def gathering(self, counted: Tensor | None = None) -> Iterator[None]:
        """Within the context, forwards of the model add to the sums.

        Args:
            counted: (batch, length), bool: the tokens that count, which padding does not; by default all. Inputs of
                another shape, such as relative positions, are no tokens and are left out.
        """
        hooks = [
            layer.register_forward_pre_hook(partial(self._add, name, counted)) for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            self._last = None
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _add(self, name: str, counted: Tensor | None, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        if counted is not None and x.shape[:-1] not in (counted.shape, (counted.numel(),)):
            return
        shared = self._last[0] if self._last and self._last[1] is x else name
        owner = self._owners.setdefault(name, shared)
        self._last = owner, x
        if owner == name:
            rows = x.reshape(-1, x.shape[-1])
            rows = (rows if counted is None else rows[counted.reshape(-1)]).double()
            self.rows[name] += len(rows)
            self._sums[name] = self._sums.get(name, 0) + rows.t() @ rows

    def directions(self, most: int) -> dict[str, Directions]:
        """The first `most` directions of every layer's inputs.

        Raises:
            LoRAError: eva_batches: a layer had no inputs, or inf or NaN.
        """
        missing = [name for name in self.layers if name not in self._owners]
        if missing:
            raise LoRAError("eva_batches", f"no input of the layer {missing[0]} was seen; expected batches of tokens")
        found = {name: self._directions(name, most) for name in self._sums}
        return {name: found[self._owners[name]] for name in self.layers}

    def _directions(self, name: str, most: int) -> Directions:
        moment = self._sums[name]
        if not moment.isfinite().all():
            raise LoRAError("eva_batches", f"the inputs of the layer {name} have inf or NaN")
        values, vectors = (tensor.cpu().flip(-1) for tensor in torch.linalg.eigh(moment))
        values = values.clamp_min(0)
        noise = values[0] * max(self.rows[name], len(values)) * torch.finfo(torch.float32).eps ** 2
        first = vectors[:, :most].t().contiguous()
        largest = first.gather(1, first.abs().argmax(1, keepdim=True))
        return Directions(first * largest.sign(), (values / values.sum())[:most], int((values > noise).sum()))


def eva_matrices(config: LoRAConfig, moments: InputMoments) -> dict[str, Tensor]:
    r"""A of every adapted layer by name, (r, in), in fp32 on the CPU: the top r right singular vectors of its inputs.

    The rows are orthogonal, of length :math:`0.02 \sqrt{\mathrm{in}}`, so that A's entries have the root mean square of
    the Gaussian start. Under Adam that size, beside alpha, sets how far a step moves the update and how fast A leaves
    its start, so a learning rate that suits the Gaussian start suits this one. PEFT's rows have length 1: 1.8 times
    that at in = 768. If `config` leaves the ranks to EVA, each layer has its own: see `distributed`.

    Raises:
        LoRAError: eva_batches: the inputs have fewer directions than the rank (there are too few tokens), are inf or
            NaN, or there are none.
    """
    ranks = {name: own.r for name, own in config.of_layers(list(moments.layers)).items()}
    most = int(config.eva_rho * config.r) if config.distributes_ranks else max(ranks.values())
    found = moments.directions(most)
    if config.distributes_ranks:
        limits = {name: min(layer.weight.shape) for name, layer in moments.layers.items()}
        ranks = distributed({name: one.shares[: min(one.rank, limits[name])] for name, one in found.items()}, config.r)
    for name, one in found.items():
        _require_rank(name, one.rank, ranks[name])
    lengths = {name: GAUSSIAN_STD * math.sqrt(one.vectors.shape[1]) for name, one in found.items()}
    return {name: (lengths[name] * one.vectors[: ranks[name]]).float() for name, one in found.items()}


def distributed(shares: Mapping[str, Tensor], r: int) -> dict[str, int]:
    """Ranks by layer that sum to r x layers: 1 for each, the others where they explain most.

    Args:
        shares: By layer, the explained variance of its directions, descending: its largest possible rank.
        r: The mean rank.
    """
    further = [(name, share) for name, own in shares.items() for share in own[1:].tolist()]
    wanted = (r - 1) * len(shares)
    poorest = min(shares, key=lambda name: len(shares[name]))
    if len(further) < wanted or not len(shares[poorest]):
        _require_rank(poorest, len(shares[poorest]), r)
    # a stable order: equal shares go to the first layers
    chosen = itertools.islice(sorted(further, key=lambda one: -one[1]), wanted)
    counts = Counter(name for name, _ in chosen)
    return {name: 1 + counts[name] for name in shares}


@torch.no_grad()
def eva_init(model: nn.Module, config: LoRAConfig, matrices: Mapping[str, Tensor]) -> LoRAConfig:
    """Give untrained adapters their A, and the rank that it has; B stays zero, so the model computes what it did.

    Args:
        model: Has LoRA of `config` injected.
        config: Where ranks change, the scales stay those that it gives.
        matrices: `eva_matrices`.

    Returns:
        `config`, with the ranks as literal `rank_pattern` and `alpha_pattern` if they have changed.

    Raises:
        LoRAError: adapter: it is trained already.
    """
    layers = lora_layers(model)
    for name, layer in layers.items():
        if any(layer.adapter.get_parameter(b).any() for b in layer.adapter.b_names()):
            raise LoRAError("adapter", f"the adapter of {name} is trained already; EVA gives A before the first step")
    ranks = {name: len(matrices[name]) for name in layers}
    if ranks != {name: layer.adapter.r for name, layer in layers.items()}:
        config = config.with_ranks(ranks)
        resize_lora(model, config)
    for name, layer in layers.items():
        for a in layer.adapter.a_names():
            layer.adapter.get_parameter(a).copy_(matrices[name])
    return config


def _require_rank(name: str, rank: int, r: int) -> None:
    if rank < r:
        raise LoRAError(
            "eva_batches",
            f"the inputs of the layer {name} have {rank} directions, expected at least r = {r}; look at more batches, "
            "or take a lower r",
        )
