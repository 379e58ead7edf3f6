"""Fingerprints of a base, which tell it from another of the same name."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lora_pl.encoder.fused import joined_state
from lora_pl.encoder.source import canonical_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def base_fingerprints(name: str, encoder: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """`{"encoder", "weights", "vocabulary"}`, by which a checkpoint recognizes its base."""
    return {
        "encoder": canonical_name(name),
        "weights": weights_fingerprint(encoder),
        "vocabulary": vocabulary_fingerprint(tokenizer),
    }


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all parameters as Transformers names them, 16 hexadecimal digits.

    Equal for the same weights on any device and in any process, and whether fused layers are split or not.
    """
    named = sorted(joined_state(model, dict(model.named_parameters())).items())
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        digests = list(pool.map(lambda item: _tensor_digest(*item), named))
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the tokenizer's entries and their ids, 16 hexadecimal digits."""
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:16]


def _tensor_digest(name: str, tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous()
    header = f"{name} {tuple(flat.shape)} {flat.dtype}".encode()
    return hashlib.sha256(header + b"\0" + flat.numpy().tobytes()).digest()
