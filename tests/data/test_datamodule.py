from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DistributedSampler

from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.errors import UserError
from lora_pl.model.classifier import LoRAClassifier


def module(tiny_encoder, glue_folder, **changes) -> SentenceDataModule:
    return SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), **changes)


def test_batches_of_a_folder(tiny_encoder, glue_folder):
    data = module(tiny_encoder, glue_folder, batch_size=5)
    data.prepare_data()
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert sum(len(batch) for batch in batches) == 48
    assert len(batches[0]) == 5
    assert set(torch.cat([batch.labels for batch in batches]).tolist()) == {0.0, 1.0}
    assert sum(len(batch) for batch in data.val_dataloader()[0]) == 48


def test_paths_may_be_objects(tiny_encoder, glue_folder, tmp_path):
    folder = Path(tiny_encoder())
    data = SentenceDataModule(source=glue_folder, encoder=folder, cache_dir=tmp_path)
    data.setup("validate")
    assert data.hparams["source"] == str(glue_folder)
    own = SentenceDataModule(train_file=glue_folder / "train.tsv", text_column="sentence", encoder=folder)
    model = LoRAClassifier.for_data(own)
    assert model.hparams["encoder"] == own.hparams["encoder"] == str(folder)
    with pytest.raises(UserError, match="train_file"):
        SentenceDataModule(train_file=3)


def test_validation_alone_needs_no_training_file(tiny_encoder, glue_folder, tmp_path):
    (tmp_path / "dev.tsv").write_bytes((glue_folder / "dev.tsv").read_bytes())
    data = module(tiny_encoder, tmp_path)
    data.setup("validate")
    assert len(data.val_dataloader()) == 1


def test_cut_and_blank_sentences_are_reported(tiny_encoder, tmp_path, capsys):
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("sentence\tlabel\nthe film is very very good\t1\n \t0\n")
    module(tiny_encoder, tmp_path, max_length=5).setup("fit")
    said = capsys.readouterr().err
    assert "train: 2 sentences" in said
    assert "1 of 2 sentences were cut at 5 tokens" in said
    assert "1 blank" in said


def test_the_encoders_positions_are_the_limit(tiny_encoder, tmp_path, capsys):
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text(f"sentence\tlabel\n{'very ' * 60}good\t1\nbad\t0\n")
    data = module(tiny_encoder, tmp_path, max_length=512)
    data.setup("fit")
    assert "cut at 38 tokens" in capsys.readouterr().err
    assert max(max(batch.lengths) for batch in data.train_dataloader()) == 38


def test_test_says_that_it_is_the_validation_split(tiny_encoder, glue_folder, capsys):
    data = module(tiny_encoder, glue_folder)
    data.setup("test")
    assert len(data.test_dataloader()) == 1
    assert "on the labelled validation split" in capsys.readouterr().err


def test_mnli_has_two_validation_splits(tiny_encoder, tmp_path):
    from tests.data.test_glue_files import LAYOUTS

    for name in ("train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"):
        (tmp_path / name).write_text("\n".join(LAYOUTS["mnli"][0]) + "\n")
    data = SentenceDataModule(task="mnli", source=str(tmp_path), encoder=tiny_encoder("bert"))
    data.setup("fit")
    assert len(data.val_dataloader()) == 2
    (batch,) = data.train_dataloader()
    assert batch.token_type_ids.sum() > 0


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_tokens", "max_length", "train_sentences"])
def test_sizes_below_the_least(name):
    with pytest.raises(UserError, match=f"^data.{name}: "):
        SentenceDataModule(**{name: 0})


def test_batches_are_made_in_this_process_whatever_num_workers_says(tiny_encoder, glue_folder):
    """And the order of the run's random numbers is not touched."""
    plain, worker = (module(tiny_encoder, glue_folder, num_workers=n) for n in (0, 2))
    assert worker.hparams["num_workers"] == 2
    for data in (plain, worker):
        data.setup("fit")
    before = torch.get_rng_state()
    for a, b in zip(plain.train_dataloader(), worker.train_dataloader(), strict=True):
        assert torch.equal(a.input_ids, b.input_ids)
    assert worker.train_dataloader().num_workers == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_the_sample_needs_nothing_else():
    data = SentenceDataModule(source="sample")
    assert (data.task.name, data.label_names, data.pairs) == ("sst2", ["negative", "positive"], False)
    assert (data.max_length, data.seed) == (64, 0)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_part_of_the_training_sentences_is_drawn_by_the_seed(seed, tiny_encoder, glue_folder, capsys):
    given = {"source": str(glue_folder), "encoder": tiny_encoder(), "seed": seed}
    whole, part, again = (SentenceDataModule(**given, train_sentences=count) for count in (None, 20, 20))
    for data in (whole, part, again):
        data.setup("fit")
    everything, chosen, same = (data.train_dataloader().dataset.tokens for data in (whole, part, again))
    sentences = [tuple(everything.ids[a:b]) for a, b in pairwise(everything.offsets)]
    drawn = [tuple(chosen.ids[a:b]) for a, b in pairwise(chosen.offsets)]
    assert len(drawn) == 20
    assert set(drawn) <= set(sentences)
    assert len(set(drawn)) == 20
    assert [chosen.labels[drawn.index(s)] for s in drawn] == [everything.labels[sentences.index(s)] for s in drawn]
    assert (chosen.ids == same.ids).all()
    assert f"train: 20 of them are used, chosen at random by seed {seed}" in capsys.readouterr().err
    assert len(part.val_dataloader()[0].dataset) == len(whole.val_dataloader()[0].dataset)


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"train_sentences": 49}, "train_sentences"), ({"max_length": 5, "too_long": "refuse"}, "too_long")],
)
def test_more_training_sentences_than_there_are_or_longer_ones(changes, key, tiny_encoder, glue_folder):
    with pytest.raises(UserError, match=f"^data.{key}: "):
        module(tiny_encoder, glue_folder, **changes).setup("fit")


@pytest.mark.parametrize("stage", ["train", "val", "test"])
def test_loaders_need_what_setup_reads(stage, tiny_encoder, glue_folder):
    with pytest.raises(UserError, match='^data: .*call setup."fit". first'):
        getattr(module(tiny_encoder, glue_folder), f"{stage}_dataloader")()


class Seen(Callback):
    """The sentences of every batch."""

    def __init__(self):
        self.train, self.val = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.train.append(batch.rows)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.val.append(batch.rows)


@pytest.mark.parametrize("overfit", [2, 0.34])
def test_overfit_batches_are_whole_and_the_same_in_each_epoch(overfit, tiny_encoder, glue_folder, tmp_path):
    data, seen = module(tiny_encoder, glue_folder, batch_size=8, eval_batch_tokens=80), Seen()
    trainer = Trainer(
        max_epochs=3, overfit_batches=overfit, accelerator="cpu", logger=False, enable_checkpointing=False,
        num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False, callbacks=[seen],
    )  # fmt: skip
    trainer.fit(LoRAClassifier.for_data(data), data)
    assert seen.train == seen.train[:2] * 3
    assert [len({*rows}) for rows in seen.train[:2]] == [8, 8]
    assert seen.val == seen.val[: len(seen.val) // 3] * 3
    assert min(map(len, seen.val)) > 1
    loaders = data.train_dataloader(), *data.val_dataloader()
    assert all(isinstance(loader.sampler, DistributedSampler) for loader in loaders)  # which several processes keep


def test_overfit_batches_of_a_loader_alone_are_refused(tiny_encoder, glue_folder, tmp_path):
    data = module(tiny_encoder, glue_folder)
    data.setup("fit")
    trainer = Trainer(overfit_batches=1, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="^data: "):
        trainer.fit(LoRAClassifier.for_data(data), data.train_dataloader())


def test_a_split_is_read_once(tiny_encoder, glue_folder, monkeypatch):
    data, read = module(tiny_encoder, glue_folder), []
    monkeypatch.setattr(data, "read", lambda split: read.append(split) or SentenceDataModule.read(data, split))
    data.prepare_data()
    data.setup("fit")
    data.setup("validate")
    assert read == ["train", "validation"]
