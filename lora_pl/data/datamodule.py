"""The LightningDataModule: the sentences of one task."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, DistributedSampler

from lora_pl.data.batches import (
    BATCH_TOKENS,
    Batch,
    Batching,
    ExactBatches,
    RandomBatches,
    SummedSeedBatches,
    TokenDataset,
)
from lora_pl.data.drawing import stratified_order
from lora_pl.data.examples import Examples
from lora_pl.data.held_out import HeldOut
from lora_pl.data.hub import PREFIX, HubDataset, absolute
from lora_pl.data.own_files import OwnFiles
from lora_pl.data.sources import HUB, SAMPLE, TRAIN, read_split
from lora_pl.data.tasks import CUSTOM, MAX_SHOWN, Task, get_task, task_name
from lora_pl.data.tokens import Tokens, default_cache, tokenize_cached
from lora_pl.encoder import EMBEDDED
from lora_pl.encoder.architectures import architecture_of
from lora_pl.encoder.loading import load_config, load_tokenizer, max_tokens
from lora_pl.errors import UserError
from lora_pl.reporting import say
from lora_pl.storage.flat import primitive
from lora_pl.storage.schema import arguments, require_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PATHS = ("source", "train_file", "validation_file", "cache_dir")
ORDERS = {"hashed": RandomBatches, "summed": SummedSeedBatches}
"""How the random batches follow from seed and epoch, as checkpoints name it."""


class SentenceDataModule(LightningDataModule):
    """A GLUE task from the hub, a GLUE download or the embedded sample; or one's own files, or any data set of the hub.

    Sentences are tokenized once and cached without padding; training draws random batches.

    Args:
        task: A GLUE task (cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb, wnli) or custom; by default sst2, or custom
            with own files or hub:NAME.
        source: hub (`nyu-mll/glue`), sample (4,500 sentences on films inside the package, for sst2), a folder of a
            GLUE download (train.tsv, dev.tsv), or hub:NAME (hub:NAME:CONFIGURATION): a data set on the hub, or a
            folder in the hub's layout.
        train_file: Own training file instead of a source: CSV, TSV, JSON lines or Parquet, by its ending.
        validation_file: Own validation file.
        validation_share: The share of the training sentences to validate on instead, drawn by label and seed.
        folds: Parts of equal size to divide the training sentences into, by label and seed; one of them validates.
        fold: Which one, from 0.
        text_column: The text's column in own files and hub:NAME; by default the task's, `text` for custom.
        text_pair_column: The second text's column for a task on pairs.
        label_column: The label's column; by default `label`.
        label_names: The classes in the order of their ids; by default the task's, or those in the training split.
        encoder: Gives the tokenizer: a hub name, a folder, or package://NAME/PATH.
        train_sentences: Training sentences to use, drawn by the seed; by default all.
        train_draw: random, or stratified (with the classes' shares in the whole split).
        max_length: The most tokens of a sentence.
        too_long: cut (and count) longer sentences, or refuse them.
        batch_size: Training sentences per step and process.
        batching: packed (a batch is one row, no padding is computed) or padded (to the batch's longest sentence); an
            encoder that can't be packed gets padded batches.
        eval_batch_tokens: Tokens per batch and process in validation, test and prediction.
        num_workers: Has no effect: batches are made in the training process, which is fastest.
        cache_dir: The folder of tokenized sentences; by default ~/.cache/lora_pl.
        seed: Of the random batches, and of the sentences that are drawn.
    """

    def __init__(
        self,
        task: str | None = None,
        source: str = HUB,
        train_file: str | None = None,
        validation_file: str | None = None,
        validation_share: float | None = None,
        folds: int | None = None,
        fold: int | None = None,
        text_column: str | None = None,
        text_pair_column: str | None = None,
        label_column: str | None = None,
        label_names: list[str] | None = None,
        encoder: str = EMBEDDED,
        train_sentences: int | None = None,
        train_draw: Literal["random", "stratified"] = "random",
        max_length: int = 64,
        too_long: Literal["cut", "refuse"] = "cut",
        batch_size: int = 32,
        batching: Batching = "packed",
        eval_batch_tokens: int = BATCH_TOKENS,
        num_workers: int = 0,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # logger=False: the model logs the settings that both share
        self.save_hyperparameters(logger=False)
        self.hparams.update({key: primitive(value) for key, value in self.hparams.items()})
        self.hparams.update({key: _absolute(value) for key, value in self.hparams.items() if key in PATHS})
        require_json(dict(self.hparams), arguments(SentenceDataModule.__init__), "data", "")
        # <s>, one token, </s>
        least = {"max_length": 3, "batch_size": 1, "eval_batch_tokens": 1, "train_sentences": 1, "folds": 2, "seed": 0}
        for name, value in least.items():
            if self.hparams[name] is not None and self.hparams[name] < value:
                raise UserError(f"data.{name}", f"expected at least {value}, got {self.hparams[name]}")
        if not all(name.strip() for name in label_names or []):
            raise UserError("data.label_names", f"expected a name for every class, got {label_names}")
        self.own = _own_data(source, train_file, validation_file)
        self.held_out = HeldOut.of(self.hparams)
        self.task: Task = get_task(task_name(task, self.own is not None))
        self.text_columns = _text_columns(self.task, text_column, text_pair_column)
        self.source, self.encoder, self.seed = source, encoder, seed
        self.max_length, self.eval_batch_tokens = max_length, eval_batch_tokens
        self._tokens: dict[str, Tokens] = {}
        self.start_at(0, 0)

    def __str__(self) -> str:
        """Short, as an error may quote it; Lightning's would make every loader."""
        return f"{type(self).__name__}(task={self.task.name!r})"

    @cached_property
    def label_names(self) -> list[str]:
        """The classes in the order of their ids; none for a regression."""
        given: list[str] | None = self.hparams["label_names"]
        if given is not None or self.task.name != CUSTOM:
            return list(self.task.labels) if given is None else given
        if self.own is None:
            raise UserError(
                "data.train_file", "expected a file, or --data.source hub:NAME, for the task custom; got none"
            )
        return list(self.own.classes(self._label_column))

    @property
    def pairs(self) -> bool:
        """Whether an example is two texts."""
        return len(self.text_columns) > 1

    @property
    def validation_splits(self) -> list[str]:
        """The labelled splits of `validate` and `test`."""
        return ["validation"] if self.own or self.held_out else list(self.task.validation)

    def prepare_data(self) -> None:
        """Read and tokenize the splits into the cache; one process per machine does this."""
        self.setup((self.trainer and self.trainer.state.fn) or "fit")

    def setup(self, stage: str) -> None:
        """Load the tokens of the stage's splits."""
        if stage == "predict":
            return
        for split in [*([TRAIN] if stage == "fit" else []), *self.validation_splits]:
            if split not in self._tokens:
                self._tokens[split] = self._tokenized(split)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Random batches."""
        data, size = self._dataset(TRAIN), self.hparams["batch_size"]
        return self._loader(data, ORDERS[self.order](data, size, self.seed, *self._replicas(), self._start))

    def start_at(self, epoch: int, batch: int, order: str = "hashed", fills: bool = True) -> None:
        """Start the next training in `epoch`, after `batch` of its batches, in one of `ORDERS`, with or without filler
        in its rows (`Batch.filled`), which changes what dropout draws."""
        self._start, self.order, self.fills = (epoch, batch), order, fills

    def teardown(self, stage: str) -> None:
        """Start the next training at its first batch."""
        self.start_at(0, 0)

    def fingerprints(self) -> dict[str, str]:
        """Those of tokens and labels, by split, of the splits that are set up."""
        return {split: tokens.fingerprint for split, tokens in self._tokens.items()}

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """A loader per labelled split, every sentence once."""
        return [
            self._loader(data, ExactBatches(data, self.eval_batch_tokens, *self._replicas()))
            for data in map(self._dataset, self.validation_splits)
        ]

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """As `val_dataloader`."""
        why = "" if self.own or self.held_out else " (the labels of GLUE tests are not public)"
        say(f"test: on the labelled {' and '.join(self.validation_splits)} split{why}")
        return self.val_dataloader()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The encoder's tokenizer."""
        return load_tokenizer(self.encoder)

    @cached_property
    def batching(self) -> Batching:
        """packed or padded as asked for, but padded if the encoder takes nothing else."""
        given: Batching = self.hparams["batching"]
        if given == "packed" and not architecture_of(load_config(self.encoder)).packed:
            say(f"batching: {self.encoder} can't be packed, so batches are padded to their longest sentence")
            return "padded"
        return given

    def read(self, split: str) -> Examples:
        """The texts and labels of a split: of its source, or held out of the training split."""
        if self.held_out is None:
            return self._stored(split)
        whole = self._stored(TRAIN)
        held = self.held_out.mask(whole, classes=bool(self.label_names))
        return whole.take(~held if split == TRAIN else held)

    @property
    def places(self) -> list[str]:
        """The local files or the folder that are read."""
        if self.own is not None:
            return self.own.places
        return [] if self.source in (HUB, SAMPLE) else [self.source]

    def labels(self, split: str) -> NDArray[np.float32]:
        """The labels of a split that is set up."""
        return self._tokens[split].labels

    def largest_share(self, split: str) -> float:
        """The share of the most frequent label of a split that is set up."""
        labels = self.labels(split)
        return float(np.unique(labels, return_counts=True)[1].max() / len(labels))

    def _stored(self, split: str) -> Examples:
        """The texts and labels of a split that there is."""
        if self.own is None:
            return read_split(self.source, self.task, split)
        return self.own.read(split, self._named_task, self.text_columns, self._label_column)

    @property
    def _named_task(self) -> Task:
        return replace(self.task, labels=tuple(self.label_names))

    @property
    def _label_column(self) -> str:
        return self.hparams["label_column"] or "label"

    def _tokenized(self, split: str) -> Tokens:
        examples, cache = self.read(split), self.hparams["cache_dir"]
        length = min(self.max_length, max_tokens(load_config(self.encoder)))
        tokens = tokenize_cached(self.tokenizer, examples, length, Path(cache) if cache else default_cache())
        if tokens.cut and self.hparams["too_long"] == "refuse":
            raise UserError(
                "data.too_long",
                f"{tokens.cut:,} of {len(tokens):,} {split} sentences are longer than {length} tokens; "
                "give a larger --data.max_length (up to the encoder's positions) or --data.too_long cut",
            )
        said = f"{split}: {len(tokens):,} sentences{self._of(split)}, {tokens.lengths.mean():.1f} tokens each"
        if tokens.cut:
            said += f"; {tokens.cut:,} of {len(tokens):,} sentences were cut at {length} tokens"
        if examples.blank:
            said += f"; {examples.blank:,} blank"
        say(said)
        say(f"  {self._named_task.distribution(tokens.labels)}")
        present = np.unique(tokens.labels)
        if absent := [name for number, name in enumerate(self.label_names) if number not in present]:
            say(f"  no sentence of {', '.join(absent[:MAX_SHOWN])}{', ...' * (len(absent) > MAX_SHOWN)}")
        count = self.hparams["train_sentences"]
        return self._drawn(tokens, count) if split == TRAIN and count else tokens

    def _of(self, split: str) -> str:
        """Where a split is from, if that is another one."""
        if self.held_out is not None:
            return "" if split == TRAIN else f" ({self.held_out.told})"
        there = self.own.split(split) if self.own else split
        return "" if there == split else f" (the {there} split of {self.source})"

    def _drawn(self, tokens: Tokens, count: int) -> Tokens:
        """`count` training sentences, drawn by the seed, in their order."""
        if count > len(tokens):
            raise UserError("data.train_sentences", f"expected at most {len(tokens)}, the whole split, got {count}")
        if self.hparams["train_draw"] == "stratified" and self.label_names:
            order, how = stratified_order(tokens.labels, self.seed), "by label and"
        else:
            order, how = np.random.default_rng(self.seed).permutation(len(tokens)), "at random by"
        say(f"train: {count:,} of them are used, chosen {how} seed {self.seed}")
        return tokens.take(np.sort(order[:count]))

    def _dataset(self, split: str) -> TokenDataset:
        return TokenDataset(self._tokens[split], self.batching, self.tokenizer.pad_token_id, self.fills)

    def _loader(self, data: TokenDataset, sampler: DistributedSampler[list[int]]) -> DataLoader[Batch]:
        # batch_size None: the sampler's lists are the batches; a generator of its own, because every loader draws a
        # seed for workers, here unused, which would change the run's random numbers
        return DataLoader(data, batch_size=None, sampler=sampler, generator=torch.Generator())

    def _replicas(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)


def _own_data(source: str, train_file: str | None, validation_file: str | None) -> OwnFiles | HubDataset | None:
    """Data whose columns and labels are the user's: files, or a data set that is named; None for GLUE's."""
    if train_file or validation_file:
        return OwnFiles(train_file, validation_file)
    return HubDataset(source) if source.startswith(PREFIX) else None


def _text_columns(task: Task, text: str | None, pair: str | None) -> tuple[str, ...]:
    """The text columns of own files: as given, else the task's."""
    if text is None and pair is None:
        return task.columns
    if pair is None and task.pairs and not task.takes_single_texts:
        raise UserError(
            "data.text_pair_column", f"expected the second sentence's column for the task {task.name}, got none"
        )
    return (text or task.columns[0],) if pair is None else (text or task.columns[0], pair)


def _absolute(path: str | None) -> str | None:
    """An absolute path, as checkpoints store it; hub, sample and None stay as they are."""
    if path is None or path in (HUB, SAMPLE):
        return path
    return absolute(path) if path.startswith(PREFIX) else str(Path(path).expanduser().resolve())
