"""From texts to columns, from batches to one answer per text."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lora_pl.data.texts import Text
from lora_pl.errors import UserError


def require_list(texts: Sequence[Text]) -> None:
    """Raise a UserError for one string, which is a sequence of letters."""
    if isinstance(texts, str):
        raise UserError("predict.texts", f"expected a list of texts, got one string; write predict([{texts[:20]!r}])")


def as_columns(texts: Sequence[Text], pairs: bool) -> list[list[str]]:
    """One list per text column.

    Raises:
        UserError: `predict.texts`: sentences and pairs are mixed, or a model of the one kind is given the other.
    """
    rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    width = len(rows[0])
    if any(len(row) != width for row in rows) or width not in (1, 2):
        raise UserError("predict.texts", "expected sentences, or pairs of sentences, all of one kind")
    if pairs and width == 1:
        raise UserError(
            "predict.texts", "this model compares two sentences; give pairs: predict([(first, second), ...])"
        )
    if not pairs and width == 2:
        raise UserError("predict.texts", "this model reads single sentences, got pairs; give predict([sentence, ...])")
    return [list(column) for column in zip(*rows, strict=True)]


def in_order(parts: Iterable[tuple[Tensor, Sequence[int]]]) -> Tensor:
    """(sentences, ...) on the CPU by their indices, from batches of rows with the indices of each."""
    rows, indices = zip(*((rows.cpu(), torch.as_tensor(indices)) for rows, indices in parts), strict=True)
    return torch.cat(rows)[torch.cat(indices).argsort()]


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
