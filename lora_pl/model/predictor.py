"""From texts to answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from lora_pl.data.batches import BATCH_TOKENS, Batching
from lora_pl.data.task import Prediction
from lora_pl.data.texts import Text, as_columns, require_list
from lora_pl.data.tokens import Tokens
from lora_pl.lora import merged_lora
from lora_pl.model.evaluating import evaluating
from lora_pl.model.network import Network

MERGED_FROM = 256
"""The number of texts from which merging pays off in `predict`."""


class Predictor(Network):
    """A network that reads texts and answers its task's question."""

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
        if not texts:
            return []
        merges = len(texts) >= MERGED_FROM and self.base.weights == torch.float32
        with merged_lora(self.encoder) if merges else nullcontext():
            return self.task.predictions(self.logits(texts, batch_tokens, batching))

    def logits(
        self, texts: Sequence[Text], batch_tokens: int = BATCH_TOKENS, batching: Batching | None = None
    ) -> Tensor:
        """(texts, outputs), fp32, on the CPU: the logits behind `predict`; adapters stay merged or unmerged."""
        return self.logits_of(self.tokenize(texts), batch_tokens, batching)

    def tokenize(self, texts: Sequence[Text]) -> Tokens:
        """The texts' tokens, cut to `max_length`; a UserError, `predict.texts`, if the model reads others."""
        return self.base.tokenize(as_columns(texts, self.pairs), self.max_length)

    @torch.inference_mode()
    def logits_of(self, tokens: Tokens, batch_tokens: int = BATCH_TOKENS, batching: Batching | None = None) -> Tensor:
        """(texts, outputs): the `logits` of texts that are tokenized."""
        with evaluating(self):
            batches = self.base.batches(tokens, batch_tokens, batching)
            rows, indices = zip(*((self(batch).cpu(), torch.tensor(own)) for batch, own in batches), strict=True)
        return torch.cat(rows)[torch.cat(indices).argsort()]
