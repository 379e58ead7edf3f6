import copy
import shutil
from pathlib import Path

import pytest
import torch

from lora_pl import LoRAClassifier, SentenceDataModule
from lora_pl.callbacks.merged_export import MergedExport
from lora_pl.callbacks.run_summary import RunSummary
from lora_pl.encoder.loading import load_tokenizer
from lora_pl.errors import UserError
from lora_pl.formats.huggingface import HuggingFaceExport
from lora_pl.formats.model_card import RECORD
from lora_pl.formats.stock_model import read_logits
from lora_pl.storage.checkpoint_io import WholeFileCheckpointIO
from lora_pl.training.resume.saving import BestCheckpoint, LastCheckpoint, SavePoints
from tests.formats.conftest import TEXTS
from tests.model.test_classifier import trainer
from tests.support import TINY_TERMS, assert_equal_to_rounding


def fit(tiny_encoder, glue_folder, folder: Path, callback: MergedExport, **changes) -> LoRAClassifier:
    model = LoRAClassifier(encoder=tiny_encoder(), learning_rate=3e-2)
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
    settings = {"max_steps": -1, "max_epochs": 2, "enable_checkpointing": True, **changes}
    best, last = BestCheckpoint(folder), LastCheckpoint(folder)
    callbacks = [SavePoints(best, last, None, None), best, last, callback, RunSummary()]
    trainer(folder, callbacks=callbacks, plugins=[WholeFileCheckpointIO()], **settings).fit(model, data)
    return model


def test_the_best_checkpoint_is_exported_and_named_in_the_summary(tiny_encoder, glue_folder, tmp_path, capsys):
    model = fit(tiny_encoder, glue_folder, tmp_path, MergedExport(sentences=40), precision="bf16-mixed")
    said = capsys.readouterr().err
    assert "0 of 40 predictions flipped, on the first 40 of 48 sentences of the validation split of sst2" in said
    assert f"merged      {tmp_path / 'merged'}" in said
    assert model.encoder.encoder.layer[0].attention.self.query.weight.dtype == torch.bfloat16  # as it was trained
    best = LoRAClassifier.load_from_checkpoint(tmp_path / "best.ckpt", base_dtype="float32")
    from transformers import AutoModelForSequenceClassification

    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    got = read_logits(merged, load_tokenizer(str(tmp_path / "merged")), TEXTS)
    assert_equal_to_rounding(got, best.logits(TEXTS), TINY_TERMS)


def test_a_model_that_the_format_cannot_hold_is_refused_before_the_first_step(tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder("distilbert"))
    with pytest.raises(UserError, match=r"^model\.head: "):
        MergedExport().on_fit_start(None, model)
    MergedExport(format="adapter").on_fit_start(None, model)


def test_the_trained_model_stays_as_it_is_and_a_second_run_replaces_the_first(
    tiny_encoder, glue_folder, tmp_path, monkeypatch
):
    seen = {}
    write = HuggingFaceExport.write
    monkeypatch.setattr(HuggingFaceExport, "write", lambda self, folder: (seen.update(self=self), write(self, folder)))
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "of an earlier run").touch()
    (tmp_path / "merged" / RECORD).touch()
    before = {}
    callback = MergedExport()
    on_fit_end = callback.on_fit_end

    def watched(runner, model):
        before.update(copy.deepcopy(model.encoder.state_dict()))
        on_fit_end(runner, model)

    callback.on_fit_end = watched
    model = fit(tiny_encoder, glue_folder, tmp_path, callback)
    assert seen["self"].model is not model
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.state_dict().items())
    assert not (tmp_path / "merged" / "of an earlier run").exists()


def test_data_that_has_gone_since_is_no_reason_to_fail(tiny_encoder, glue_folder, tmp_path, capsys):
    shutil.copytree(glue_folder, tmp_path / "data")

    class Vanishing(MergedExport):
        def on_fit_end(self, *given):
            shutil.rmtree(tmp_path / "data")
            super().on_fit_end(*given)

    fit(tiny_encoder, tmp_path / "data", tmp_path, Vanishing(sentences=8))
    assert "0 of 8 predictions flipped, on the embedded sentences" in capsys.readouterr().err


def test_without_a_best_checkpoint_there_is_nothing_to_export(tiny_encoder, glue_folder, tmp_path, capsys):
    callback = MergedExport()
    model = LoRAClassifier(encoder=tiny_encoder())
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder())
    trainer(tmp_path, callbacks=[callback]).fit(model, data)
    assert callback.exported is None
    assert not list(tmp_path.glob("merged*"))
    assert "merged export: none, as the run has no best checkpoint" in capsys.readouterr().err
