"""Random numbers of several processes."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def take_own_stream(rank: int) -> None:
    """Seed the generators of Python, NumPy and torch by a hash of torch's state, which all processes share, and `rank`.

    Process 0 keeps the shared stream, as a single process does.
    """
    if rank == 0:
        return
    shared = torch.get_rng_state().numpy().tobytes()
    digest = hashlib.sha256(shared + str(rank).encode()).digest()
    random.seed(digest)
    np.random.seed(np.frombuffer(digest, np.uint32))
    torch.manual_seed(int.from_bytes(digest[:8]))
