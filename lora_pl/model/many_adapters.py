"""Several adapters on one base, in one process."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lora_pl.data.batches import BATCH_TOKENS, Batch
from lora_pl.data.task import Prediction, Task
from lora_pl.data.tasks import task_of
from lora_pl.data.texts import Text, as_columns, require_list
from lora_pl.data.tokens import Tokens, concatenate
from lora_pl.encoder.architectures import require_shared_batches
from lora_pl.encoder.biases_and_norms import trains_biases_or_norms
from lora_pl.encoder.dtype import BaseDtype, resolve_dtype
from lora_pl.encoder.source import require_own_package
from lora_pl.errors import UserError
from lora_pl.lora import AdapterBank, LoRAConfig
from lora_pl.lora.bank_layer import module_key
from lora_pl.lora.state import below, copy_state
from lora_pl.model.base import Base
from lora_pl.model.stored import read_model
from lora_pl.storage.checkpoint import DATA_KEY, SETTINGS_KEY, check_base
from lora_pl.storage.schema import arguments, require_json

_LOADING = threading.Lock()


@dataclass(frozen=True)
class Member:
    """The settings of an adapter's checkpoint that prediction needs."""

    task: Task
    max_length: int
    has_adapter: bool
    """False if only the head was trained."""
    text_column: str | None
    """In the tables that it was trained on, if the checkpoint names it."""
    text_pair_column: str | None


class ManyAdapters(nn.Module):
    """The models of several checkpoints on one base, which is loaded once.

    Example:
        >>> models = ManyAdapters({"sst2": "a/best.ckpt", "rte": "b/best.ckpt"})  # doctest: +SKIP
        >>> models.predict(["A fine film."], "sst2")  # doctest: +SKIP
        >>> models.predict(["A fine film.", ("It rains.", "It is dry.")], ["sst2", "rte"])  # doctest: +SKIP

    Args:
        checkpoints: A checkpoint per name.
        encoder: The base, if it has moved; by default the first checkpoint's.
        base_dtype: Of the base's weights and its computation; auto is float32.

    Raises:
        UserError: `model`: there is no such type; `checkpoint...`: see `read_model`; `adapter`: a checkpoint
            has another base, or was trained with `method: full`, or with biases or norms of its own.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, str | Path],
        encoder: str | Path | None = None,
        base_dtype: BaseDtype = "float32",
    ) -> None:
        super().__init__()
        if not checkpoints:
            raise UserError("adapter", "expected at least one name with a checkpoint, got none")
        require_json({"base_dtype": base_dtype}, arguments(ManyAdapters.__init__), "model", "")
        settings = read_model(next(iter(checkpoints.values())))[SETTINGS_KEY]
        if encoder is None:
            require_own_package(settings["encoder"])
        self.base = Base.load(os.fspath(encoder or settings["encoder"]))
        require_shared_batches(self.base.config)
        self.base.cast(resolve_dtype(base_dtype, ""))
        self.encoder = self.base.encoder
        self.bank = AdapterBank(self.encoder)
        self.heads = nn.ModuleDict()
        self.members: dict[str, Member] = {}
        self.active = next(iter(checkpoints))
        for member, path in checkpoints.items():
            self.load_adapter(member, path)
        self.eval()

    def train(self, mode: bool = True) -> ManyAdapters:
        """Nothing: it stays in eval mode."""
        return super().train(False)

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Add a checkpoint's adapter and head under a new name; after an error nothing has changed.

        Other threads may predict meanwhile.

        Raises:
            UserError: see `ManyAdapters`; `adapter`: the name is taken or empty.
        """
        with _LOADING:
            self._load_adapter(name, path)

    def _load_adapter(self, name: str, path: str | Path) -> None:
        checkpoint = read_model(path)
        settings = checkpoint[SETTINGS_KEY]
        self._require_fitting(name, path, checkpoint)
        task = task_of(settings)
        columns = (checkpoint.get(DATA_KEY, {}).get(name) for name in ("text_column", "text_pair_column"))
        max_length = min(settings["max_length"], self.base.max_tokens)
        member = Member(task, max_length, settings["method"] == "lora", *columns)
        head = self.base.new_head(settings["head"], task.outputs)
        copy_state(head.state_dict(), below("head.", checkpoint["state_dict"]))
        head.to(self.base.device).eval().requires_grad_(False)
        if member.has_adapter:
            lora = self.base.resolve(LoRAConfig.of(settings["lora"]))
            self.bank.add(name, lora, below("encoder.", checkpoint["state_dict"]))
        self.heads[module_key(name)] = head
        self.members[name] = member

    def set_adapter(self, name: str) -> None:
        """Choose the default adapter of `predict`."""
        self._member(name)
        self.active = name

    def predict(
        self, texts: Sequence[Text], adapters: str | Sequence[str] | None = None, batch_tokens: int = BATCH_TOKENS
    ) -> list[Prediction]:
        """The adapters' answers to the texts, in their order; see `LoRAClassifier.predict`.

        Args:
            texts: Sentences, or pairs of sentences for an adapter whose task is on pairs.
            adapters: A name for all texts or one per text; by default the active one. Batches mix adapters.
            batch_tokens: Tokens per forward pass.

        Raises:
            UserError: `predict.texts`: one string; `adapter`: an unknown name, or texts that it does not read.
        """
        require_list(texts)
        one = self.active if adapters is None else adapters
        asked = [one] * len(texts) if isinstance(one, str) else one
        if len(asked) != len(texts):
            raise UserError("adapter", f"expected a name per text, got {len(asked)} for {len(texts)}")
        if not asked:
            return []
        return self.predictions_of(self.tokenize(texts, asked), asked, batch_tokens)

    def tokenize(self, texts: Sequence[Text], asked: Sequence[str]) -> Tokens:
        """The texts' tokens, each cut to the `max_length` of the adapter that is `asked`; errors as of `predict`."""
        parts, places = [], []
        for name in dict.fromkeys(asked):
            member = self._member(name)
            own = [place for place, other in enumerate(asked) if other == name]
            try:
                columns = as_columns([texts[place] for place in own], member.task.pairs)
            except UserError as error:
                raise UserError("adapter", f"{name}: {error}") from None
            parts.append(self.base.tokenize(columns, member.max_length))
            places += own
        return concatenate(parts).take(np.argsort(places))

    @torch.inference_mode()
    def predictions_of(
        self, tokens: Tokens, asked: Sequence[str], batch_tokens: int = BATCH_TOKENS
    ) -> list[Prediction]:
        """The answers of `predict` to texts that are tokenized."""
        answers: dict[int, Prediction] = {}
        for batch, places in self.base.batches(tokens, batch_tokens):
            answers |= self._answers(batch, places, asked)
        return [answers[place] for place in range(len(tokens))]

    def _answers(self, batch: Batch, places: Sequence[int], asked: Sequence[str]) -> dict[int, Prediction]:
        """A batch's predictions by place."""
        names = [asked[place] for place in places]
        route = [name if self.members[name].has_adapter else None for name in names]
        with self.bank.route(route, batch.lengths):
            features = self.base.features(batch)  # (batch, hidden)
        answers: dict[int, Prediction] = {}
        for name in dict.fromkeys(names):
            rows = [row for row, other in enumerate(names) if other == name]
            logits: Tensor = self.heads[module_key(name)](features[rows])
            own = [places[row] for row in rows]
            answers |= zip(own, self.members[name].task.predictions(logits, own), strict=True)
        return answers

    def _member(self, name: str) -> Member:
        if name not in self.members:
            raise UserError("adapter", f"there is no {name!r}; there are: {', '.join(self.members) or 'none'}")
        return self.members[name]

    def _require_fitting(self, name: str, path: str | Path, checkpoint: Mapping[str, Any]) -> None:
        settings = checkpoint[SETTINGS_KEY]
        if name in self.members or not name:
            raise UserError("adapter", f"expected a new name for {path}, got {name!r}")
        whole = "a whole encoder" if settings["method"] == "full" else "biases or norms of its own"
        if settings["method"] == "full" or trains_biases_or_norms(settings):
            raise UserError(
                "adapter", f"{name}: {path} holds {whole}, which can't share a base; give it to --ckpt_path"
            )
        try:
            check_base(checkpoint, self.base.fingerprints)
        except UserError as error:
            raise UserError("adapter", f"{name}: {error}") from None
