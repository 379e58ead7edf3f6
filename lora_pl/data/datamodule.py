"""The sentences of one task as Lightning asks for them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler

from lora_pl.data.batches import BATCH_TOKENS, Batch, Batching, ExactBatches, RandomBatches, TokenDataset
from lora_pl.data.examples import Examples, discover_labels, read_examples
from lora_pl.data.sources import HUB, SAMPLE, TRAIN, read_split
from lora_pl.data.tasks import CUSTOM, Task, get_task
from lora_pl.data.tokens import Tokens, default_cache, tokenize_cached
from lora_pl.encoder import EMBEDDED
from lora_pl.encoder.architectures import architecture_of
from lora_pl.encoder.loading import load_config, load_tokenizer, max_tokens
from lora_pl.errors import UserError
from lora_pl.reporting import say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PATHS = ("source", "train_file", "validation_file", "cache_dir")


class SentenceDataModule(LightningDataModule):
    """A GLUE task from the hub, from a download's folder or from the embedded sample, or a user's own files.

    Sentences are tokenized once and cached without padding; training draws random batches of them.

    Args:
        task: A GLUE task (cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb, wnli) or custom; by default sst2, or custom
            where own files are given.
        source: hub (`nyu-mll/glue`), sample (4,500 sentences on films inside the package, for sst2), or a folder in
            the layout of a GLUE download (train.tsv, dev.tsv).
        train_file: Own training file instead of a source: CSV, TSV, JSON lines or Parquet, by its ending.
        validation_file: Own validation file.
        text_column: The text's column in own files; by default the task's, `text` for custom.
        text_pair_column: The second text's column for a task on pairs.
        label_column: The label's column in own files.
        label_names: The classes in the order of their ids; by default the task's, or those in train_file.
        encoder: Whose tokenizer to use: a hub name, a folder, or package://NAME/PATH.
        train_sentences: How many training sentences to use, chosen at random by the seed; by default all.
        max_length: The longest sentence in tokens.
        too_long: cut (and count) sentences that are longer, or refuse them.
        batch_size: Training sentences per step and process.
        batching: packed (one row per batch, no padding token is ever computed) or padded (to the batch's longest);
            an encoder that cannot take packed rows gets padded batches.
        eval_batch_tokens: Tokens per step and process where nothing is trained.
        num_workers: Without effect: batches are made in the training process, which is fastest.
        cache_dir: Where tokenized sentences are kept; by default ~/.cache/lora_pl.
        seed: Draws the random batches.
    """

    def __init__(
        self,
        task: str | None = None,
        source: str = HUB,
        train_file: str | None = None,
        validation_file: str | None = None,
        text_column: str | None = None,
        text_pair_column: str | None = None,
        label_column: str | None = None,
        label_names: list[str] | None = None,
        encoder: str = EMBEDDED,
        train_sentences: int | None = None,
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
        # <s>, one token, </s>
        _require_at_least(3, max_length=max_length)
        _require_at_least(1, batch_size=batch_size, eval_batch_tokens=eval_batch_tokens)
        _require_at_least(1, train_sentences=1 if train_sentences is None else train_sentences)
        # logger=False: the model logs the settings that both share
        self.save_hyperparameters(logger=False)
        self.hparams.update({key: absolute(value) for key, value in self.hparams.items() if key in PATHS})
        self.own_files = {TRAIN: train_file, "validation": validation_file}
        self.task: Task = get_task(task or (CUSTOM if any(self.own_files.values()) else "sst2"))
        self.source = source
        self.encoder, self.seed = encoder, seed
        self.max_length, self.batch_size, self.eval_batch_tokens = max_length, batch_size, eval_batch_tokens
        self.train_sentences = train_sentences
        self.too_long, self._given_batching = too_long, batching
        self.cache = Path(cache_dir).expanduser() if cache_dir else default_cache()
        self._given_label_names = label_names
        self.text_columns = _text_columns(self.task, text_column, text_pair_column)
        self._label_column = label_column or "label"
        self._splits: dict[str, Tokens] = {}
        self._start = (0, 0)

    @cached_property
    def label_names(self) -> list[str]:
        """The classes in the order of their ids; none for a regression."""
        if self._given_label_names is not None:
            return self._given_label_names
        if self.task.name != CUSTOM:
            return list(self.task.labels)
        return list(discover_labels(self._own_file(TRAIN), self._label_column))

    @property
    def pairs(self) -> bool:
        """Whether an example is two texts."""
        return len(self.text_columns) > 1

    @property
    def reads_own_files(self) -> bool:
        """Whether texts come from a user's files rather than from a GLUE task's source."""
        return any(self.own_files.values())

    @property
    def validation_splits(self) -> list[str]:
        """The labelled splits that `validate` and `test` go over."""
        return ["validation"] if self.reads_own_files else list(self.task.validation)

    def prepare_data(self) -> None:
        """Read and tokenize every split that training needs, into the cache; one process per machine does this."""
        for split in self._needed(self.trainer.state.fn if self.trainer else "fit"):
            self._tokens(split)

    def setup(self, stage: str) -> None:
        """Load the tokens of the stage's splits."""
        for split in self._needed(stage):
            if split not in self._splits:
                self._splits[split] = self._tokens(split, report=True)
        if stage == "test":
            why = "" if self.reads_own_files else " (the labels of GLUE tests are not public)"
            say(f"test: on the labelled {' and '.join(self.validation_splits)} split{why}")

    def train_dataloader(self) -> DataLoader[Batch]:
        """Random batches."""
        data = self._dataset(TRAIN)
        return self._loader(data, RandomBatches(data, self.batch_size, self.seed, *self._replicas(), self._start))

    def start_at(self, epoch: int, batch: int) -> None:
        """Let the next training begin in `epoch`, `batch` batches done."""
        self._start = (epoch, batch)

    def teardown(self, stage: str) -> None:
        """The next training begins at the beginning."""
        self._start = (0, 0)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """A loader per labelled split, every sentence once."""
        return [
            self._loader(data, ExactBatches(data, self.eval_batch_tokens, *self._replicas()))
            for data in map(self._dataset, self.validation_splits)
        ]

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """As `val_dataloader`."""
        return self.val_dataloader()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The encoder's tokenizer."""
        return load_tokenizer(self.encoder)

    @cached_property
    def batching(self) -> Batching:
        """How batches are made: as asked for, but padded where the encoder takes nothing else."""
        if self._given_batching == "packed" and not architecture_of(load_config(self.encoder)).packed:
            say(f"batching: {self.encoder} takes no packed rows, so batches are padded to their longest sentence")
            return "padded"
        return self._given_batching

    def _needed(self, stage: str | None) -> list[str]:
        if stage == "predict":
            return []
        return [*([TRAIN] if stage == "fit" else []), *self.validation_splits]

    def _tokens(self, split: str, report: bool = False) -> Tokens:
        examples = self.read(split)
        length = min(self.max_length, max_tokens(load_config(self.encoder)))
        tokens = tokenize_cached(self.tokenizer, examples, length, self.cache)
        if tokens.cut and self.too_long == "refuse":
            raise UserError(
                "data.too_long",
                f"{tokens.cut:,} of {len(tokens):,} {split} sentences are longer than {length} tokens; "
                "give a larger --data.max_length (up to the encoder's positions) or --data.too_long cut",
            )
        if report:
            _report(split, examples, tokens, length)
        return self._chosen(tokens, report) if split == TRAIN and self.train_sentences else tokens

    def _chosen(self, tokens: Tokens, report: bool) -> Tokens:
        """As many training sentences as were asked for, in their order."""
        count = self.train_sentences or len(tokens)
        if count > len(tokens):
            raise UserError("data.train_sentences", f"expected at most {len(tokens)}, the whole split, got {count}")
        if report:
            say(f"train: {count:,} of them are used, chosen at random by seed {self.seed}")
        return tokens.take(np.sort(np.random.default_rng(self.seed).permutation(len(tokens))[:count]))

    def read(self, split: str) -> Examples:
        """The texts and labels of a split, from its source."""
        if not self.reads_own_files:
            return read_split(self.source, self.task, split)
        return read_examples(self._own_file(split), self.task, self.text_columns, self._label_column, self.label_names)

    def _own_file(self, split: str) -> str:
        path = self.own_files[split]
        if path is None:
            raise UserError(f"data.{split}_file", "expected a file beside the other one given, got none")
        return path

    def _dataset(self, split: str) -> TokenDataset:
        return TokenDataset(self._splits[split], self.batching, self.tokenizer.pad_token_id)

    def _loader(self, data: TokenDataset, sampler: DistributedSampler[list[int]]) -> DataLoader[Batch]:
        # batch_size None: the sampler's lists are the batches; a loader draws a number that it has no use for, and
        # with a generator of its own it takes none of the run's
        return DataLoader(data, batch_size=None, sampler=sampler, generator=torch.Generator())

    def _replicas(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)


def _text_columns(task: Task, text: str | None, pair: str | None) -> tuple[str, ...]:
    """The text columns of own files: as given, else the task's."""
    if text is None and pair is None:
        return task.columns
    if pair is None and task.requires_pairs:
        raise UserError(
            "data.text_pair_column", f"the task {task.name} compares two sentences; name the second's column"
        )
    return (text or task.columns[0],) if pair is None else (text or task.columns[0], pair)


def absolute(path: str | None) -> str | None:
    """A path as a checkpoint stores it, so that it holds in another folder; what is no path stays as it is."""
    return path if path in (None, HUB, SAMPLE) else str(Path(path).expanduser().resolve())


def _require_at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise UserError(f"data.{name}", f"expected at least {least}, got {value}")


def _report(split: str, examples: Examples, tokens: Tokens, length: int) -> None:
    said = f"{split}: {len(tokens):,} sentences, {tokens.lengths.mean():.1f} tokens each"
    if tokens.cut:
        said += f"; {tokens.cut:,} of {len(tokens):,} sentences were cut at {length} tokens"
    if examples.blank:
        said += f"; {examples.blank:,} blank"
    say(said)
