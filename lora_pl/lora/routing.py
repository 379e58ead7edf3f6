"""Which rows of a layer's input go through which adapter."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor

from lora_pl.lora.errors import LoRAError
from lora_pl.lora.transfer import transfer

# of a context (a thread, a task): by bank, the innermost routing last
_ACTIVE: ContextVar[Mapping[Routes, tuple[Routing, ...]]] = ContextVar("active", default={})  # noqa: B039  never changed


class Routing:
    """Segments of one forward and the adapter of each.

    Args:
        adapters: A name per segment; None is the base alone.
        lengths: Tokens per segment.
    """

    def __init__(self, adapters: tuple[str | None, ...], lengths: tuple[int, ...]) -> None:
        if len(adapters) != len(lengths):
            raise LoRAError("route", f"expected as many lengths as adapters, got {len(lengths)} and {len(adapters)}")
        self.used = tuple(dict.fromkeys(name for name in adapters if name is not None))
        """The adapters that occur, each once."""
        index = {name: number for number, name in enumerate(self.used)}
        self._adapter = np.asarray([-1 if name is None else index[name] for name in adapters], np.int64)
        self._lengths = np.asarray(lengths, np.int64)
        self._rows: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
        self._masks: dict[tuple[object, ...], Tensor | None] = {}

    def mask(self, shape: tuple[int, ...], columns: tuple[tuple[str, int], ...], device: torch.device) -> Tensor | None:
        """(rows, sum of k), bool: whether a column belongs to another adapter than the row's; None if none does.

        Computed once per kind of input, then kept for the other layers.

        Args:
            shape: The input's without the features: (1, tokens), (1, segments), (segments,) or (segments, length).
            columns: The joined adapters and the columns of each.
            device: The input's.
        """
        key = (shape, columns, device)
        if key not in self._masks:
            owner = np.repeat([self.used.index(name) for name, _ in columns], [rank for _, rank in columns])
            mask = self._of_rows(shape)[:, None] != owner[None]
            self._masks[key] = transfer(torch.from_numpy(mask), device) if mask.any() else None
        return self._masks[key]

    def of_rows(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """(rows,): the number in `used` of each row's adapter, -1 for the base alone."""
        key = (shape, device)
        if key not in self._rows:
            self._rows[key] = transfer(torch.from_numpy(self._of_rows(shape)), device)
        return self._rows[key]

    def _of_rows(self, shape: tuple[int, ...]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        rows, segments = int(np.prod(shape)), len(self._lengths)
        if len(shape) == 2 and shape[0] == segments > 1:  # padded, a row of tokens per segment
            return np.repeat(self._adapter, shape[1])
        if rows == self._lengths.sum():
            return np.repeat(self._adapter, self._lengths)
        if rows == segments:  # the segments' first tokens alone
            return self._adapter
        raise LoRAError(
            "route", f"{segments} segments of {self._lengths.sum()} tokens do not fit an input of shape {shape}"
        )


class Routes:
    """The routings in use of one bank, which its layers share: each thread (and asyncio task) has its own."""

    def __init__(self) -> None:
        self._users: Counter[str] = Counter()
        self._closed: set[str] = set()
        self.lock = threading.Condition()
        """Whoever holds it sees, or makes, whole changes of the bank."""

    def __reduce__(self) -> tuple[type[Routes], tuple[()]]:
        return Routes, ()  # nobody uses a copy yet

    @property
    def current(self) -> Routing | None:
        """This thread's."""
        routings = self._own()
        return routings[-1] if routings else None

    @contextmanager
    def taken(self, routing: Routing, known: Collection[str]) -> Iterator[None]:
        """Within the context, forwards of this thread follow `routing`, and none of its adapters changes.

        Raises:
            LoRAError: adapter: one is not `known`.
        """
        own = self._own()
        with self.lock:
            # who waits within another route is waited for: a cycle
            self.lock.wait_for(lambda: own or self._closed.isdisjoint(routing.used))
            require_known(routing.used, known)
            self._users.update(routing.used)
        token = _ACTIVE.set({**_ACTIVE.get(), self: (*own, routing)})
        try:
            yield
        finally:
            _ACTIVE.reset(token)
            with self.lock:
                self._users.subtract(routing.used)
                self.lock.notify_all()

    @contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """Within the context the bank is this thread's alone to change, and no forward uses the adapter `name`.

        Waits for those that do, and lets no further one begin.

        Raises:
            LoRAError: adapter: this thread itself is in a `route` with adapters, and another may wait for it.
        """
        if any(routing.used for routing in self._own()):
            raise LoRAError("adapter", f"change {name!r} outside of `with bank.route(...)`, which may use it")
        with self.lock:
            self.lock.wait_for(lambda: name not in self._closed)
            self._closed.add(name)
            try:
                self.lock.wait_for(lambda: self._users[name] == 0)
                yield
            finally:
                self._closed.remove(name)
                self.lock.notify_all()

    def _own(self) -> tuple[Routing, ...]:
        return _ACTIVE.get().get(self, ())


def require_known(names: Iterable[str], known: Collection[str]) -> None:
    """Raise a LoRAError, adapter, if one of `names` is not `known`."""
    for name in names:
        if name not in known:
            raise LoRAError("adapter", f"there is no {name!r}; there are: {', '.join(known) or 'none'}")
