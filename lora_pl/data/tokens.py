"""Tokenized sentences as one flat array, cached on disk."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from lora_pl.data.examples import Examples
from lora_pl.encoder.fingerprint import tokenizer_definition, vocabulary_fingerprint
from lora_pl.errors import UserError, first_line
from lora_pl.storage.write_whole import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 1000  # texts per call of the tokenizer, a step of the progress bar
# a call sets its limit on the tokenizer, which threads may share
_CALLS: WeakKeyDictionary[PreTrainedTokenizerBase, threading.Lock] = WeakKeyDictionary()
CACHE_FORMAT = "3"
ARRAYS = ("ids", "offsets", "second", "labels")


@dataclass(frozen=True)
class Tokens:
    """Sentence i is `ids[offsets[i]:offsets[i + 1]]`, special tokens included; no padding is stored."""

    ids: NDArray[np.int32]
    """(tokens,)"""
    offsets: NDArray[np.int64]
    """(sentences + 1,)"""
    second: NDArray[np.int32]
    """(sentences,): tokens of a pair's second text, which come last, by the tokenizer's type ids."""
    labels: NDArray[np.float32]
    """(sentences,): class ids or scores; (sentences, classes): 0 or 1, for several labels per text; empty where there
    are none."""
    cut: int
    """How many sentences were longer than the limit."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(sentences,): tokens per sentence."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all of it, 16 hexadecimal digits."""
        digest = hashlib.sha256(str(self.cut).encode())
        for name in ARRAYS:
            array = getattr(self, name)
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()[:16]

    def take(self, indices: NDArray[np.int64]) -> Tokens:
        """The sentences `indices` alone."""
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        labels = self.labels[indices] if len(self.labels) else self.labels
        return Tokens(self.ids[places], offsets, self.second[indices], labels, self.cut)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]], max_length: int, show_progress: bool = False
) -> Tokens:
    """Tokenize one text column, or two for pairs, truncated to `max_length` tokens, the longer text first.

    A text without tokens, which is an empty one if there are no special tokens, is one unknown token.

    Raises:
        UserError: `data.max_length`: special tokens leave no room for text.
    """
    _require_room(tokenizer, len(texts), max_length)
    ids: list[NDArray[np.int32]] = []
    second: list[int] = []
    cut = 0
    typed = "token_type_ids" in tokenizer.model_input_names
    unknown = [tokenizer.unk_token_id or 0]
    for encoding in _encodings(tokenizer, texts, max_length, show_progress):
        ids.append(np.asarray(encoding.ids or unknown, dtype=np.int32))
        second.append(sum(encoding.type_ids) if typed else 0)
        cut += bool(encoding.overflowing)
    offsets = np.concatenate([[0], np.cumsum([len(sentence) for sentence in ids], dtype=np.int64)])
    flat = np.concatenate(ids) if ids else np.empty(0, np.int32)
    return Tokens(flat, offsets.astype(np.int64), np.asarray(second, np.int32), np.empty(0, np.float32), cut)


def concatenate(parts: Sequence[Tokens]) -> Tokens:
    """The sentences of all parts, one part after the other."""
    lengths = np.concatenate([part.lengths for part in parts])
    return Tokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([part.second for part in parts]),
        np.concatenate([part.labels for part in parts]),
        sum(part.cut for part in parts),
    )


def tokenize_cached(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int, cache: Path) -> Tokens:
    """`tokenize` with labels, cached in the folder `cache` by a hash of texts, labels, tokenizer and length.

    A damaged file is written again; a folder that can't be written to means no cache.
    """
    _require_room(tokenizer, len(examples.texts), max_length)
    path = cache / f"{_key(tokenizer, examples, max_length)}.safetensors"
    tokens = _load(path)
    if tokens is None:
        tokens = tokenize(tokenizer, examples.texts, max_length, show_progress=True)
        tokens = replace(tokens, labels=np.asarray(examples.labels, np.float32))
        _save(tokens, path)
    return tokens


def _require_room(tokenizer: PreTrainedTokenizerBase, columns: int, max_length: int) -> None:
    special = tokenizer.num_special_tokens_to_add(pair=columns > 1)
    if max_length <= special:
        what = "a pair" if columns > 1 else "a text"
        raise UserError(
            "data.max_length",
            f"expected at least {special + 1}, since {what} has {special} special tokens, got {max_length}",
        )


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/lora_pl`, by default `~/.cache/lora_pl`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora_pl"


def _encodings(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]], max_length: int, show_progress: bool
) -> Iterator[Any]:
    from tqdm.auto import tqdm

    count = len(texts[0])
    hidden = None if show_progress and count > CHUNK else True  # None: hidden where stderr is no terminal
    with tqdm(total=count, desc="Tokenizing", unit=" sentences", disable=hidden, leave=False) as bar:
        for start in range(0, count, CHUNK):
            columns = [list(column[start : start + CHUNK]) for column in texts]
            yield from _encoded(tokenizer, columns, max_length).encodings
            bar.update(len(columns[0]))


def _encoded(tokenizer: PreTrainedTokenizerBase, columns: Sequence[list[str]], max_length: int) -> Any:
    try:
        with _CALLS.setdefault(tokenizer, threading.Lock()):
            return tokenizer(*columns, truncation=True, max_length=max_length)
    except BaseException as error:
        # a rule that names a token that is not there; Rust's panic is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = f"the tokenizer of {tokenizer.name_or_path} can't tokenize: {first_line(error)}"
        raise UserError("model.encoder", said) from error


def _key(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int) -> str:
    """SHA-256, 32 hexadecimal digits, over all that the tokens depend on."""
    rules = [tokenizer_definition(tokenizer), vocabulary_fingerprint(tokenizer)]
    settings = [CACHE_FORMAT, version("tokenizers"), version("transformers"), max_length, len(examples.texts)]
    labels = np.asarray(examples.labels, np.float32)
    settings += labels.shape[1:]  # one label's column is no class ids
    digest = hashlib.sha256(json.dumps([*settings, len(examples), *rules], sort_keys=True).encode())
    digest.update(labels.tobytes())
    for column in examples.texts:
        # lengths keep "a", "bc" apart from "ab", "c"
        digest.update(np.asarray([len(text) for text in column], np.int64).tobytes())
        digest.update("".join(column).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def _load(path: Path) -> Tokens | None:
    """The tokens of a file; None if there is none, or it is damaged."""
    from safetensors import safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in ARRAYS}
            metadata = file.metadata() or {}
        tokens = Tokens(**arrays, cut=int(metadata["cut"]))
        return tokens if metadata["sha256"] == tokens.fingerprint else None
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, OSError):
        return None


def _save(tokens: Tokens, path: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {name: getattr(tokens, name) for name in ARRAYS}
    metadata = {"cut": str(tokens.cut), "sha256": tokens.fingerprint}
    with suppress(OSError, SafetensorError):  # a full or read-only disk: no cache
        write_whole(path, lambda beside: save_file(arrays, beside, metadata=metadata))
