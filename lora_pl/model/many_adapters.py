"""Several adapters on one base, in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_pl.data.batches import BATCH_TOKENS, Batch, Batching, batches_of_like_length
from lora_pl.data.tasks import Task, get_task
from lora_pl.data.texts import Text
from lora_pl.data.tokens import Tokens, concatenate, tokenize
from lora_pl.encoder.architectures import module_names, require_shared_batches
from lora_pl.encoder.dtype import DTYPES, cast_frozen
from lora_pl.encoder.features import FirstTokenFeatures
from lora_pl.encoder.fingerprint import base_fingerprints
from lora_pl.encoder.head import new_head
from lora_pl.encoder.loading import load_config, load_encoder, load_tokenizer, max_tokens, takes_packed_rows
from lora_pl.errors import UserError
from lora_pl.lora import AdapterBank, LoRAConfig
from lora_pl.model.answers import Prediction, as_columns, as_predictions, features_of
from lora_pl.storage.checkpoint import check_base, read_checkpoint


@dataclass(frozen=True)
class Member:
    """What a checkpoint has beside its adapter."""

    task: Task
    label_names: Sequence[str]
    pairs: bool
    max_length: int
    has_adapter: bool
    """False where the head alone was trained."""


class ManyAdapters(nn.Module):
    """The models of several checkpoints that were trained on the same base, which is loaded once.

    Example:
        >>> models = ManyAdapters({"sst2": "a/best.ckpt", "rte": "b/best.ckpt"})  # doctest: +SKIP
        >>> models.predict(["A fine film."], "sst2")  # doctest: +SKIP
        >>> models.predict(["A fine film.", ("It rains.", "It is dry.")], ["sst2", "rte"])  # doctest: +SKIP

    Args:
        checkpoints: A checkpoint per name.
        encoder: The base where it has moved; by default where the first checkpoint says.
        base_dtype: float32, bfloat16 or float16: what the base's weights are kept in and what is computed in.

    Raises:
        UserError: a file is no checkpoint of lora_pl, or was trained on another base, or as a whole encoder.
    """

    def __init__(
        self, checkpoints: Mapping[str, str | Path], encoder: str | None = None, base_dtype: str = "float32"
    ) -> None:
        super().__init__()
        if not checkpoints:
            raise UserError("adapter: expected at least one name with a checkpoint, got none")
        settings = read_checkpoint(next(iter(checkpoints.values())))["hyper_parameters"]
        name = encoder or settings["encoder"]
        self.config = load_config(name)
        require_shared_batches(self.config)
        self.tokenizer = load_tokenizer(name)
        self.encoder = load_encoder(name).requires_grad_(False)
        self.base = base_fingerprints(name, self.encoder, self.tokenizer)
        self.features = FirstTokenFeatures(self.encoder)
        self.batching: Batching = "packed" if takes_packed_rows(self.config) else "padded"
        self.dtype = DTYPES[base_dtype]
        cast_frozen(self.encoder, self.dtype)
        self.bank = AdapterBank(self.encoder)
        self.heads = nn.ModuleDict()
        self.members: dict[str, Member] = {}
        self.active = next(iter(checkpoints))
        for member, path in checkpoints.items():
            self.load_adapter(member, path)
        self.eval()

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Add a checkpoint's adapter and head under a new name; nothing changes where it does not fit."""
        checkpoint = read_checkpoint(path)
        settings = checkpoint["hyper_parameters"]
        self._require_fitting(name, path, checkpoint)
        member = Member(
            get_task(settings["task"]),
            settings["label_names"],
            settings["pairs"],
            min(settings["max_length"], max_tokens(self.config)),
            settings["method"] == "lora",
        )
        head = new_head(settings["head"], self.config, len(member.label_names) or 1)
        head.load_state_dict(_below("head.", checkpoint["state_dict"]))
        if member.has_adapter:
            lora = module_names(LoRAConfig.of(settings["lora"]), self.config)
            self.bank.add(name, lora, _below("encoder.", checkpoint["state_dict"]))
        self.heads[name] = head.to(self.device).eval().requires_grad_(False)
        self.members[name] = member

    def set_adapter(self, name: str) -> None:
        """Choose who answers where `predict` is not told."""
        self._member(name)
        self.active = name

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        device: torch.device = next(self.encoder.parameters()).device
        return device

    @torch.inference_mode()
    def predict(
        self, texts: Sequence[Text], adapters: str | Sequence[str] | None = None, batch_tokens: int = BATCH_TOKENS
    ) -> list[Prediction]:
        """What the models say of the texts, in their order; see `LoRAClassifier.predict`.

        Args:
            texts: Sentences, or pairs of sentences where the adapter's task is on pairs.
            adapters: One name for all texts or a name per text; by default the active one. Batches are mixed.
            batch_tokens: Tokens per forward pass.
        """
        if isinstance(texts, str):
            raise UserError(f"predict: expected a list of texts, got one string; write predict([{texts[:20]!r}])")
        asked = [adapters or self.active] * len(texts) if adapters is None or isinstance(adapters, str) else adapters
        if len(asked) != len(texts):
            raise UserError(f"predict: expected an adapter's name per text, got {len(asked)} for {len(texts)}")
        if not asked:
            return []
        answers: dict[int, Prediction] = {}
        tokens, places = self._tokenize(texts, asked)
        for batch, rows in batches_of_like_length(tokens, batch_tokens, self.batching, self.tokenizer.pad_token_id):
            answers |= self._answers(batch.to(self.device), [places[row] for row in rows], asked)
        return [answers[place] for place in range(len(texts))]

    def _tokenize(self, texts: Sequence[Text], asked: Sequence[str]) -> tuple[Tokens, list[int]]:
        """All texts, each as its adapter reads it, and their places: adapter by adapter."""
        parts, places = [], []
        for name in dict.fromkeys(asked):
            member = self._member(name)
            own = [place for place, other in enumerate(asked) if other == name]
            try:
                columns = as_columns([texts[place] for place in own], member.pairs)
            except UserError as error:
                raise UserError(f"adapter {name}: {error}") from None
            parts.append(tokenize(self.tokenizer, columns, member.max_length))
            places += own
        return concatenate(parts), places

    def _answers(self, batch: Batch, places: Sequence[int], asked: Sequence[str]) -> dict[int, Prediction]:
        """A batch's predictions by place."""
        names = [asked[place] for place in places]
        route = [name if self.members[name].has_adapter else None for name in names]
        with self._half_precision(), self.bank.route(route, batch.lengths):
            features = features_of(batch, self.features).float()  # (batch, hidden)
        answers: dict[int, Prediction] = {}
        for name in dict.fromkeys(names):
            rows = [row for row, other in enumerate(names) if other == name]
            logits: Tensor = self.heads[name](features[rows])
            member = self.members[name]
            predictions = as_predictions(member.task, member.label_names, logits)
            answers |= zip((places[row] for row in rows), predictions, strict=True)
        return answers

    def _half_precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def _member(self, name: str) -> Member:
        if name not in self.members:
            raise UserError(f"adapter: there is no {name!r}; there are: {', '.join(self.members) or 'none'}")
        return self.members[name]

    def _require_fitting(self, name: str, path: str | Path, checkpoint: Mapping[str, Any]) -> None:
        settings = checkpoint["hyper_parameters"]
        if name in self.members or not name or "." in name:
            raise UserError(f"adapter: expected a new name without dots for {path}, got {name!r}")
        if settings["method"] == "full":
            raise UserError(
                f"adapter {name}: {path} holds a whole encoder, which can't share a base; predict with it alone"
            )
        try:
            check_base(checkpoint, self.base)
        except UserError as error:
            raise UserError(f"adapter {name}: {error}") from None


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
