"""Eval mode while threads predict."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_LOCK = threading.Lock()
_USERS: Counter[nn.Module] = Counter()
_TRAINED: set[nn.Module] = set()
"""Those among `_USERS` that go back to train mode."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within the context; every module's own mode once no thread is in such a context any more."""
    modules = list(model.modules())
    with _LOCK:
        _USERS.update(modules)
        for module in modules:
            if module.training:
                _TRAINED.add(module)
                module.training = False
    try:
        yield
    finally:
        with _LOCK:
            _USERS.subtract(modules)
            for module in modules:
                if not _USERS[module]:
                    del _USERS[module]
                    if module in _TRAINED:
                        _TRAINED.remove(module)
                        module.training = True
