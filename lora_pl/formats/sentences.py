"""The sentences on which an export is compared with the checkpoint's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_pl.data.hub import PREFIX, HubDataset
from lora_pl.data.sentence_data import SentenceData
from lora_pl.data.sources import HUB, SAMPLE, read_split
from lora_pl.data.task import Label
from lora_pl.data.tasks import get_task
from lora_pl.data.texts import Text, as_text
from lora_pl.errors import UserError
from lora_pl.storage.checkpoint import DATA_KEY
from lora_pl.storage.paths import public
from lora_pl.storage.settings import EVALUATED

DEFAULT_COUNT = 256


@dataclass(frozen=True)
class Sentences:
    """Texts (or pairs), their labels if they are of the model's task, and their source."""

    texts: tuple[Text, ...]
    labels: tuple[Label, ...]
    """Empty if the texts are not of the model's task."""
    source: str


def require_count(count: int) -> None:
    """Raise a UserError, `sentences`, if the count is below 0."""
    if count < 0:
        raise UserError("sentences", f"expected a number of sentences, or 0 for all, got {count}")


def sentences_of(data: SentenceData, count: int) -> Sentences:
    """The first `count` sentences of the data's validation split (0: all of it)."""
    split = data.validation_splits[0]
    examples = data.read(split)
    texts, labels = _rows(examples.texts, count), tuple(examples.labels[: count or None])
    total, where = len(examples.labels), public((data.places or [data.source])[-1])
    part = f"the first {len(texts):,} of {total:,} sentences of " if len(texts) < total else ""
    return Sentences(texts, labels, f"{part}the {split} split of {data.task.name} ({where})")


def sentences_for(checkpoint: Mapping[str, Any], count: int) -> Sentences:
    """Sentences of the validation split of the checkpoint's data, without a network.

    The embedded sentences are used instead if that is on the hub or was deleted.

    Raises:
        UserError: `sentences`, the count is below 0.
    """
    require_count(count)
    settings = {key: value for key, value in checkpoint.get(DATA_KEY, {}).items() if key in EVALUATED}
    settings |= {"label_names": checkpoint["hyper_parameters"]["label_names"]}
    places = [settings.get(key) for key in ("source", "train_file", "validation_file")]
    if any(place is not None and _is_local(place) for place in places):
        try:
            return sentences_of(SentenceData(**settings), count)
        except UserError:  # moved or deleted since
            pass
    return embedded_sentences(bool(checkpoint["hyper_parameters"]["pairs"]), count)


def _is_local(place: str) -> bool:
    return HubDataset(place).folder is not None if place.startswith(PREFIX) else place != HUB


def embedded_sentences(pairs: bool, count: int) -> Sentences:
    """The sample's validation sentences; for a model of pairs each with its successor."""
    texts = read_split(SAMPLE, get_task("sst2"), "validation").texts[0]
    columns = [texts[:-1], texts[1:]] if pairs else [texts]
    return Sentences(_rows(columns, count), (), "the embedded sentences")


def _rows(columns: Sequence[Sequence[str]], count: int) -> tuple[Text, ...]:
    return tuple(as_text(row) for row in list(zip(*columns, strict=True))[: count or None])
