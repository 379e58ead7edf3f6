"""The sentences of one task, read and tokenized."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lora_pl.data.batches import BATCH_TOKENS, Batching
from lora_pl.data.classes import MAX_SHOWN
from lora_pl.data.drawing import drawn
from lora_pl.data.examples import Examples
from lora_pl.data.held_out import HeldOut
from lora_pl.data.hub import HubDataset, absolute
from lora_pl.data.own_files import own_data
from lora_pl.data.sources import HUB, SAMPLE, TEST, TRAIN, read_split
from lora_pl.data.task import Task
from lora_pl.data.tasks import OWN_TASKS, get_task, task_name
from lora_pl.data.tokens import Tokens, default_cache, tokenize_cached
from lora_pl.encoder import EMBEDDED
from lora_pl.encoder.architectures import architecture_of
from lora_pl.encoder.loading import load_config, load_tokenizer, max_tokens
from lora_pl.errors import UserError
from lora_pl.printable import first_of
from lora_pl.reporting import say
from lora_pl.storage.flat import primitive
from lora_pl.storage.schema import arguments, require_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

IF_TOO_LONG = "give a larger --data.max_length (up to the encoder's positions) or --data.too_long cut"


class SentenceData:
    """A GLUE task from the hub, a GLUE download or the embedded sample; or one's own files, or any data set of the hub.

    Sentences are tokenized once and cached without padding. `SentenceDataModule` makes batches of them for a Trainer.

    Args:
        task: A GLUE task (cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb, wnli), custom, or multilabel (several labels
            per text); by default sst2, or custom with own files or hub:NAME.
        source: hub (`nyu-mll/glue`), sample (4,568 sentences on films inside the package, for sst2), a folder of a
            GLUE download (train.tsv, dev.tsv), or hub:NAME (hub:NAME:CONFIGURATION): a data set on the hub, or a
            folder in the hub's layout.
        train_file: Own training file instead of a source: CSV, TSV, JSON lines or Parquet, by its ending.
        validation_file: Own validation file.
        test_file: Own test file; `test` without one measures on the validation split.
        validation_share: The share of the training sentences to validate on instead, drawn by label and seed.
        folds: Parts of equal size to divide the training sentences into, by label and seed; one of them validates.
        fold: Which one, from 0.
        text_column: The text's column in own files and hub:NAME; by default the task's, `text` for custom.
        text_pair_column: The second text's column for a task on pairs.
        label_column: The label's column; by default `label`. For multilabel it has lists, in CSV and TSV as JSON.
        label_columns: For multilabel, instead of it: a column of 0 and 1 for each class, in the order of the classes.
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
        source: str | Path = HUB,
        train_file: str | Path | None = None,
        validation_file: str | Path | None = None,
        test_file: str | Path | None = None,
        validation_share: float | None = None,
        folds: int | None = None,
        fold: int | None = None,
        text_column: str | None = None,
        text_pair_column: str | None = None,
        label_column: str | None = None,
        label_columns: list[str] | None = None,
        label_names: list[str] | None = None,
        encoder: str | Path = EMBEDDED,
        train_sentences: int | None = None,
        train_draw: Literal["random", "stratified"] = "random",
        max_length: int = 64,
        too_long: Literal["cut", "refuse"] = "cut",
        batch_size: int = 32,
        batching: Batching = "packed",
        eval_batch_tokens: int = BATCH_TOKENS,
        num_workers: int = 0,
        cache_dir: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        settings = {name: primitive(value) for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        require_json(settings, arguments(SentenceData.__init__), "data", "")
        given = {name: settings[name] for name in ("source", "train_file", "validation_file", "test_file", "cache_dir")}
        settings |= {name: absolute(path) for name, path in given.items()}
        self._keep(settings)
        # <s>, one token, </s>
        least = {"max_length": 3, "batch_size": 1, "eval_batch_tokens": 1, "train_sentences": 1, "folds": 2, "seed": 0}
        for name, value in least.items():
            if self.hparams[name] is not None and self.hparams[name] < value:
                raise UserError(f"data.{name}", f"expected at least {value}, got {self.hparams[name]}")
        if not all(name.strip() for name in label_names or []):
            raise UserError("data.label_names", f"expected a name for every class, got {label_names}")
        self.own = own_data(given["source"], *(given[f"{split}_file"] for split in (TRAIN, "validation", TEST)))
        self.held_out = HeldOut.of(self.hparams)
        self.task: Task = get_task(task_name(task, self.own is not None))
        self.text_columns = self.task.text_columns(text_column, text_pair_column)
        self.task.require_label_columns(label_columns, label_names)
        self.source, self.encoder, self.seed = given["source"], settings["encoder"], seed
        self.max_length, self.eval_batch_tokens = max_length, eval_batch_tokens
        self._tokens: dict[str, Tokens] = {}

    def _keep(self, settings: dict[str, Any]) -> None:
        """Keep the arguments; of a subclass Lightning does."""
        self.hparams = settings

    @cached_property
    def label_names(self) -> list[str]:
        """The classes in the order of their ids; none for a regression."""
        names, columns = self.hparams["label_names"], self.hparams["label_columns"]
        given: list[str] | None = columns if names is None else names
        if given is not None or self.task.name not in OWN_TASKS:
            return list(self.task.labels) if given is None else given
        if self.own is None:
            raise UserError(
                "data.train_file",
                f"expected a file, or --data.source hub:NAME, for the task {self.task.name}; got none",
            )
        return list(self.own.classes(OWN_TASKS[self.task.name], self._label_column))

    @property
    def pairs(self) -> bool:
        """Whether an example is two texts."""
        return len(self.text_columns) > 1

    @property
    def validation_splits(self) -> list[str]:
        """The labelled splits of `validate`, and of `test` without a test file."""
        return ["validation"] if self.own or self.held_out else list(self.task.validation)

    def labelled_splits(self, stage: str) -> list[str]:
        """Those of a stage of Lightning: for `test` the test file, if there is one."""
        return [TEST] if stage == "test" and self.hparams["test_file"] else self.validation_splits

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The encoder's tokenizer."""
        return load_tokenizer(self.encoder)

    @cached_property
    def _config(self) -> PretrainedConfig:
        return load_config(self.encoder)

    @cached_property
    def batching(self) -> Batching:
        """packed or padded as asked for, but padded if the encoder takes nothing else."""
        given: Batching = self.hparams["batching"]
        if given == "packed" and not architecture_of(self._config).packed:
            say(f"batching: {self.encoder} can't be packed, so batches are padded to their longest sentence")
            return "padded"
        return given

    def read(self, split: str) -> Examples:
        """The texts and labels of a split: of its source, or held out of the training split."""
        if self.held_out is None or split == TEST:
            return self._stored(split)
        whole = self._stored(TRAIN)
        held = self.held_out.mask(whole, classes=bool(self.label_names))
        return whole.take(~held if split == TRAIN else held)

    def take_read(self, other: SentenceData) -> None:
        """Take what `other` has read already and no seed draws; it differs in its seed alone, and none is held out."""
        anew = {TRAIN} if self.hparams["train_sentences"] else set()
        self._tokens = {split: tokens for split, tokens in other._tokens.items() if split not in anew}

    @property
    def places(self) -> list[str]:
        """The local files or the folder that are read."""
        if self.own is not None:
            return self.own.places
        return [] if self.source in (HUB, SAMPLE) else [self.source]

    def labels(self, split: str) -> NDArray[np.float32]:
        """The labels of a split that is set up; see `Tokens`."""
        return self._tokens[split].labels

    def largest_share(self, split: str) -> float:
        """The share of the most frequent label, or set of labels, of a split that is set up."""
        labels = self.labels(split)
        return float(np.unique(labels, axis=0, return_counts=True)[1].max() / len(labels))

    def _stored(self, split: str) -> Examples:
        """The texts and labels of a split that there is."""
        if self.own is None:
            return read_split(self.source, self.task, split)
        flags = self.hparams["label_columns"] or ()
        return self.own.read(split, self._named_task, self.text_columns, self._label_column, flags)

    @property
    def _named_task(self) -> Task:
        return replace(self.task, labels=tuple(self.label_names))

    @property
    def _label_column(self) -> str:
        return self.hparams["label_column"] or "label"

    def _tokenized(self, split: str) -> Tokens:
        examples, cache = self.read(split), self.hparams["cache_dir"]
        length = min(self.max_length, max_tokens(self._config))
        tokens = tokenize_cached(self.tokenizer, examples, length, Path(cache) if cache else default_cache())
        if tokens.cut and self.hparams["too_long"] == "refuse":
            raise UserError(
                "data.too_long",
                f"{tokens.cut:,} of {len(tokens):,} {split} sentences are longer than {length} tokens; {IF_TOO_LONG}",
            )
        self._report(split, tokens, examples.blank, length)
        count = self.hparams["train_sentences"]
        if split != TRAIN or not count:
            return tokens
        stratified = self.hparams["train_draw"] == "stratified" and bool(self.label_names)
        return drawn(tokens, count, self.seed, stratified)

    def _report(self, split: str, tokens: Tokens, blank: int, length: int) -> None:
        said = f"{split}: {len(tokens):,} sentences{self._of(split)}, {tokens.lengths.mean():.1f} tokens each"
        if tokens.cut:
            said += f"; {tokens.cut:,} of {len(tokens):,} sentences were cut at {length} tokens"
        if blank:
            said += f"; {blank:,} blank"
        say(said)
        say(f"  {self._named_task.distribution(tokens.labels)}")
        if absent := self._named_task.absent(tokens.labels):
            say(f"  no sentence of {first_of(absent, MAX_SHOWN)}")

    def _of(self, split: str) -> str:
        """Where a split is from, if that is another one."""
        if self.held_out is not None:
            return "" if split in (TRAIN, TEST) else f" ({self.held_out.told})"
        there = self.own.split(split) if isinstance(self.own, HubDataset) else split
        return "" if there == split else f" (the {there} split of {self.source})"
