"""The model without Lightning: what it starts from, what its checkpoints hold, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from lora_pl.data.batches import BATCH_TOKENS, Batching
from lora_pl.data.task import Prediction
from lora_pl.data.texts import Text, as_columns, require_list
from lora_pl.data.tokens import Tokens
from lora_pl.encoder.source import require_own_package
from lora_pl.errors import UserError
from lora_pl.lora import LoRAConfig, LoRAError, merged_lora
from lora_pl.lora.injection import resize_lora
from lora_pl.model.evaluating import evaluating
from lora_pl.model.network import Network
from lora_pl.model.start import read_start
from lora_pl.model.stored import model_settings, read_model
from lora_pl.reporting import say
from lora_pl.storage.checkpoint import BASE_KEY, SETTINGS_KEY, START_KEY, check_base
from lora_pl.storage.settings import differing

MERGED_FROM = 256
"""The number of texts from which merging pays off in `predict`."""


class PlainClassifier(Network):
    """All of `LoRAClassifier` but its training: what predicts and exports, without the seconds of Lightning's imports.

    Args:
        encoder: A hub name, a folder, or package://NAME/PATH (a folder inside an installed package).
        base_dtype: The frozen weights' dtype; auto is the dtype of `--trainer.precision`.

    The others are described at `LoRAClassifier`.
    """

    def _start(self, path: str) -> None:
        """Copy what the checkpoint gives over what was drawn, so that all random draws are those without it."""
        start = read_start(path, self.base)
        drawn = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        ranked = self._ranked_as(start.settings)
        try:
            tensors = start.tensors(ranked)
            self._take_ranks(ranked)
            self.load_state_dict({**drawn, **tensors})
        except LoRAError as error:
            raise UserError("model.start_from", f"{start.path}: {error}") from None
        self.started = start.record
        say(start.told(self.hparams))

    def _ranked_as(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The model's settings; with the ranks of the stored ones, if they were left to EVA."""
        lora = LoRAConfig.of(self.hparams["lora"])
        if self._ranks_are_open:
            lora = lora.with_patterns_of(LoRAConfig.of(stored["lora"]))
        return {**self.hparams, "lora": lora.to_dict()}

    def _take_ranks(self, ranked: Mapping[str, Any]) -> None:
        """Resize the adapters, where the ranks were left to EVA."""
        if self._ranks_are_open:
            resize_lora(self.encoder, self.base.resolve(LoRAConfig.of(ranked["lora"])))
            self.hparams["lora"] = ranked["lora"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the base's name and fingerprints, and what the model started from."""
        self.require_start()
        checkpoint[BASE_KEY] = dict(self.base.fingerprints)
        if self.started is not None:
            checkpoint[START_KEY] = dict(self.started)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise `checkpoint.settings` or `checkpoint.base` if the model computes something else, or on another base."""
        settings = model_settings(checkpoint, "the checkpoint", model=type(self))
        ranked = self._ranked_as(settings)
        for difference in differing(settings, ranked):
            say(f"checkpoint: {difference}")
        check_base(checkpoint, self.base.fingerprints)
        self._take_ranks(ranked)
        self.hparams["start_from"], self.started = settings["start_from"], checkpoint.get(START_KEY)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path,
        map_location: str | torch.device | None = None,
        strict: bool | None = True,
        weights_only: bool | None = True,
        **overrides: Any,
    ) -> Self:
        """The model of a checkpoint, on `map_location`, in eval mode.

        Args:
            checkpoint_path: `best.ckpt` or `last.ckpt` of a run.
            map_location: The device; by default the CPU.
            strict: As in Lightning; loading is always strict.
            weights_only: As in Lightning; no code of a checkpoint is ever run.
            overrides: Constructor arguments to change that do not change what the checkpoint computes, such as
                `encoder` if the base has moved.

        Raises:
            UserError: `checkpoint...`: see `read_model`; the overrides or the base differ from the checkpoint's;
                `model...`: there is no such argument.
        """
        if strict is False:
            raise UserError("model.strict", "expected True: part of a checkpoint would be another model; leave it out")
        checkpoint = read_model(checkpoint_path, cls)
        for name in overrides.keys() - checkpoint[SETTINGS_KEY].keys():
            raise UserError(f"model.{name}", f"{cls.__name__} has no such argument")
        model = cls.of_file(checkpoint[SETTINGS_KEY], overrides)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        return model.to(map_location or "cpu").eval()

    @classmethod
    def of_file(cls, settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> Self:
        """The untrained model that the settings of a file describe, with some of the caller's own.

        It does not read what the file's model started from: its weights are those of the file.
        """
        if overrides.get("encoder") is None:
            require_own_package(settings["encoder"])
        model = cls(**{**settings, **overrides, "start_from": None})
        model.hparams["start_from"] = settings["start_from"]
        return model

    @contextmanager
    def merged_for_prediction(self, dtype: torch.dtype = torch.float32) -> Iterator[None]:
        """Within the context, all calls of `predict` share one merge: in fp32, then rounded once to `dtype`.

        For int8 nothing is merged: adapters fit the codes that they were trained beside.

        In this thread alone; but the base stays in `dtype` afterwards, so no other thread may use it meanwhile.
        """
        merged = nullcontext() if dtype == torch.int8 else merged_lora(self.encoder, dtype)
        with torch.inference_mode(False), merged:  # weights outlive an inference mode
            self.base.cast(dtype)
            yield

    @torch.inference_mode()
    def predict(
        self, texts: Sequence[Text], batch_tokens: int = BATCH_TOKENS, batching: Batching | None = None
    ) -> list[Prediction]:
        """The model's answers to the texts, in their order, in eval mode. Threads may share a model.

        For 256 texts or more, adapters on an fp32 base are merged, for this call alone.

        Args:
            texts: Sentences, or pairs of sentences for a task on pairs.
            batch_tokens: Tokens per forward pass; texts of like length share a batch.
            batching: packed or padded; by default what the encoder takes.

        Returns:
            A dict per text: the label, its probability as `score`, and every label's probability; for several labels
            per text the `labels` above 1/2, and every label's probability; for a regression the `score` alone.

        Raises:
            UserError: `predict.texts`: one string instead of a list, or pairs for single sentences.
        """
        require_list(texts)
        merges = len(texts) >= MERGED_FROM and self.base.weights == torch.float32
        with merged_lora(self.encoder) if merges else nullcontext():
            return self.task.predictions(self.logits(texts, batch_tokens, batching))

    def logits(
        self, texts: Sequence[Text], batch_tokens: int = BATCH_TOKENS, batching: Batching | None = None
    ) -> Tensor:
        """(texts, outputs), fp32, on the CPU: the logits behind `predict`; adapters stay merged or unmerged."""
        require_list(texts)
        if not texts:
            return torch.empty(0, self.task.outputs)
        return self.logits_of(self.tokenize(texts), batch_tokens, batching)

    def tokenize(self, texts: Sequence[Text]) -> Tokens:
        """The texts' tokens, cut to `max_length`; a UserError, `predict.texts`, if the model reads others."""
        require_list(texts)
        return self.base.tokenize(as_columns(texts, self.pairs), self.max_length)

    @torch.inference_mode()
    def logits_of(self, tokens: Tokens, batch_tokens: int = BATCH_TOKENS, batching: Batching | None = None) -> Tensor:
        """(texts, outputs): the `logits` of texts that are tokenized."""
        with evaluating(self):
            batches = self.base.batches(tokens, batch_tokens, batching)
            rows, indices = zip(*((self(batch).cpu(), torch.tensor(own)) for batch, own in batches), strict=True)
        return torch.cat(rows)[torch.cat(indices).argsort()]
