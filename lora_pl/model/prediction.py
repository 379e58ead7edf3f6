"""A model that is asked about texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lora_pl.data.batches import Batching
from lora_pl.data.tasks import Prediction, Task
from lora_pl.data.texts import Text
from lora_pl.lora import lora_layers, merged_lora
from lora_pl.model.answers import as_columns, evaluating, in_order, require_list
from lora_pl.model.module import TaskModule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MERGED_FROM = 256
"""Texts from which on merging pays in `predict`."""


def example_command(task: Task, checkpoint: str) -> str:
    """A shell command that asks a checkpoint of the task about an example."""
    if task.pairs:
        text = task.example.replace("\t", "\\t")
        return f"printf '{text}\\n' | lora_pl predict --ckpt_path {checkpoint}"
    return f"echo '{task.example}' | lora_pl predict --ckpt_path {checkpoint}"


class PredictingModule(TaskModule):
    """Answers texts by a forward pass of its own, with LoRA in `encoder` merged where that pays."""

    encoder: nn.Module
    max_length: int
    """The longest text in tokens that isn't cut."""
    predict_batch_tokens: int
    """Tokens per forward pass."""
    predict_batching: Batching

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's."""
        return self.base.tokenizer

    @property
    def label_names(self) -> list[str]:
        """The classes in the order of their ids; none for a regression."""
        return list(self.task.labels)

    @property
    def pairs(self) -> bool:
        """Whether an example is two texts."""
        return self.task.pairs

    @contextmanager
    def merged_for_prediction(self, dtype: torch.dtype = torch.float32) -> Iterator[None]:
        """Within the context, many calls of `predict` share one merge: in fp32, then rounded once to `dtype`.

        Afterwards the adapters are apart again; the base's other weights stay in `dtype`.
        """
        layers = [layer for layer in lora_layers(self.encoder).values() if not layer.merged]
        with torch.inference_mode(False):
            for layer in layers:
                layer.merge()
            self.base.cast(dtype)
        try:
            yield
        finally:
            with torch.inference_mode(False):
                for layer in layers:
                    layer.unmerge()
                self.base.cast(self.base.dtype)  # W0 again

    def on_predict_start(self) -> None:
        """Merge for all of the trainer's batches."""
        self._merging: AbstractContextManager[None] = self.merged_for_prediction(self.base_dtype)
        self._merging.__enter__()

    def on_predict_end(self) -> None:
        """Unmerge."""
        self._merging.__exit__(None, None, None)
        del self._merging

    def predict_step(self, texts: Sequence[Text], batch_idx: int = 0) -> list[Prediction]:
        """`predict` for a trainer, which cares for the mode and for merging."""
        return self._predictions(texts, self.predict_batch_tokens)

    @torch.inference_mode()
    def predict(self, texts: Sequence[Text], batch_tokens: int | None = None) -> list[Prediction]:
        """What the model says of each text, in their order.

        Many texts are asked with the adapters merged where the base is fp32, so that nothing is rounded.

        Args:
            texts: Sentences, or pairs of sentences for a task on pairs.
            batch_tokens: Tokens per forward pass, by default `predict_batch_tokens`; batches are made of like lengths.

        Returns:
            A dict per text: the label, its probability as `score`, and every label's probability; for a regression
            the `score` alone.

        Raises:
            UserError: `predict.texts`: one string instead of a list, or pairs for single sentences.
        """
        require_list(texts)
        merges = len(texts) >= MERGED_FROM and self.base.dtype == torch.float32
        with evaluating(self), merged_lora(self.encoder) if merges else nullcontext():
            return self._predictions(texts, batch_tokens or self.predict_batch_tokens)

    @torch.inference_mode()
    def logits(self, texts: Sequence[Text]) -> Tensor:
        """(texts, outputs), fp32, on the CPU: what `predict` makes its answers of, with the adapters as they are."""
        with evaluating(self):
            return self._logits(texts, self.predict_batch_tokens)

    def _predictions(self, texts: Sequence[Text], batch_tokens: int) -> list[Prediction]:
        return self.task.predictions(self._logits(texts, batch_tokens)) if len(texts) else []

    def _logits(self, texts: Sequence[Text], batch_tokens: int) -> Tensor:
        """(texts, outputs) on the CPU in the texts' order, computed in batches of like lengths."""
        tokens = self.base.tokenize(as_columns(texts, self.pairs), self.max_length)
        batches = self.base.batches(tokens, batch_tokens, self.predict_batching)
        return in_order((self(batch), indices) for batch, indices in batches)
