"""From texts to columns, from probabilities to answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lora_pl.data.texts import Text
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
