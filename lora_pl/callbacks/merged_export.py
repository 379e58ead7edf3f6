"""The best model of a run as a folder that other programs load."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lora_pl.callbacks.best import best_keeper
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.errors import UserError
from lora_pl.formats import FORMATS
from lora_pl.formats.export import Dtype, ExportOptions
from lora_pl.formats.exporting import Format, export_checkpoint, require_free
from lora_pl.formats.sentences import DEFAULT_COUNT, Sentences, embedded_sentences, require_count, sentences_of
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.reporting import say
from lora_pl.storage.paths import expanded


class MergedExport(Callback):
    """At the end of fit, exports the best checkpoint and compares the export with it on validation sentences.

    The trained model stays as it is: the export is made from the checkpoint and the base's own source.

    Args:
        folder: By default `merged` beside the checkpoint. An earlier export there is replaced.
        format: hf, peft, onnx or adapter.
        dtype: The type of the written weights.
        sentences: How many validation sentences to compare on; 0: all.

    Raises:
        UserError: `sentences`, it is below 0.
    """

    def __init__(
        self, folder: str | None = None, format: Format = "hf", dtype: Dtype = "float32", sentences: int = DEFAULT_COUNT
    ) -> None:
        require_count(sentences)
        self.folder, self.format, self.dtype, self.sentences = folder, format, dtype, sentences
        self.exported: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise `export.taken` before the run, if the folder holds something else."""
        if self.folder:
            require_free(expanded(self.folder), overwrite=True)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise before the first step what the format can't hold."""
        if isinstance(pl_module, LoRAClassifier):
            FORMATS[self.format](pl_module, ExportOptions(self.dtype))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export, by the first process alone."""
        others = (callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint))
        keeper = best_keeper(trainer, pl_module) or next(others, None)
        best = keeper.best_model_path if keeper else ""
        if not trainer.is_global_zero:
            return
        if not best:
            say("merged export: none, as the run has no best checkpoint")
            return
        folder = expanded(self.folder or Path(best).with_name("merged"))
        options, sentences = ExportOptions(self.dtype), self._sentences(trainer, pl_module)
        comparisons = export_checkpoint(best, folder, self.format, options, sentences=sentences, overwrite=True)
        self.exported = folder
        say(f"merged export: {comparisons[self.format]}")

    def _sentences(self, trainer: Trainer, pl_module: LightningModule) -> Sentences:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, SentenceDataModule):
            try:
                return sentences_of(data, self.sentences)
            except UserError:  # deleted since it was read
                pass
        return embedded_sentences(bool(pl_module.hparams["pairs"]), self.sentences)
