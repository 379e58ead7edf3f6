"""Running out of memory."""

import re

import torch

NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, torch or a device ran out of memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY.search(str(error)) is not None
