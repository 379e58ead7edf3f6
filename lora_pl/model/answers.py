"""From texts to columns, from probabilities to answers."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lora_pl.data.batches import Batch
from lora_pl.data.tasks import Task
from lora_pl.data.texts import Text
from lora_pl.encoder.features import FirstTokenFeatures
from lora_pl.encoder.packing import Packing
from lora_pl.errors import UserError

Prediction = dict[str, Any]
"""`{"label", "score", "probabilities": {label: p}}`, or `{"score"}` for a regression."""


def as_columns(texts: Sequence[Text], pairs: bool) -> list[list[str]]:
    """One list per text column.

    Raises:
        UserError: sentences and pairs are mixed, or a model of the one kind is given the other.
    """
    rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    width = len(rows[0])
    if any(len(row) != width for row in rows) or width not in (1, 2):
        raise UserError("predict: expected sentences, or pairs of sentences, all of one kind")
    if pairs and width == 1:
        raise UserError("predict: this model compares two sentences; give pairs: predict([(first, second), ...])")
    if not pairs and width == 2:
        raise UserError("predict: this model reads single sentences, got pairs; give predict([sentence, ...])")
    return [list(column) for column in zip(*rows, strict=True)]


def features_of(batch: Batch, encoder: FirstTokenFeatures) -> Tensor:
    """The feature of each sentence's first token, (batch, hidden)."""
    if batch.attention_mask is not None:
        return encoder.of_padded(batch.input_ids, batch.token_type_ids, batch.attention_mask)
    return encoder.of_packed(batch.input_ids, batch.token_type_ids, Packing(batch.lengths, batch.input_ids.device))


def in_order(parts: Iterable[tuple[Tensor, Sequence[int]]]) -> Tensor:
    """(sentences, ...) on the CPU by their indices, from batches of rows with the indices of each."""
    rows, indices = zip(*((rows.cpu(), torch.as_tensor(indices)) for rows, indices in parts), strict=True)
    return torch.cat(rows)[torch.cat(indices).argsort()]


def as_predictions(task: Task, label_names: Sequence[str], logits: Tensor) -> list[Prediction]:
    """An answer per row of logits, (texts, outputs)."""
    if task.is_regression:
        return [{"score": score} for score in logits.squeeze(-1).tolist()]
    return [as_prediction(label_names, row) for row in logits.softmax(-1).tolist()]


def as_prediction(label_names: Sequence[str], probabilities: Sequence[float]) -> Prediction:
    """The most probable label, its probability, and everyone's."""
    by_label = dict(zip(label_names, probabilities, strict=True))
    label = max(by_label, key=by_label.__getitem__)
    return {"label": label, "score": by_label[label], "probabilities": by_label}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within the context; every module's own mode afterwards."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
