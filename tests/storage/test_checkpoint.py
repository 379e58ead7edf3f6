import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from lora_pl import LoRAClassifier, LoRAConfig, SentenceDataModule
from lora_pl.errors import UserError
from lora_pl.storage.checkpoint import read_checkpoint
from lora_pl.storage.checkpoint_io import WholeFileCheckpointIO
from tests.model.test_classifier import TEXTS, trainer
from tests.processes import run
from tests.support import random_encoder


def test_holds_adapter_head_optimizer_and_schedule_but_no_base(checkpoint):
    stored = torch.load(checkpoint, weights_only=True)
    assert sorted(stored["state_dict"]) == sorted(LoRAClassifier.load_from_checkpoint(checkpoint).state_dict())
    assert sum(tensor.numel() for tensor in stored["state_dict"].values()) == 4 * 2 * 16 * 4 + 34
    assert len(stored["optimizer_states"][0]["state"]) == 10
    assert stored["lr_schedulers"][0]["last_epoch"] > 0
    json.dumps(stored["hyper_parameters"])
    json.dumps(stored["datamodule_hyper_parameters"])


def print_probabilities(checkpoint: Path) -> None:
    model = LoRAClassifier.load_from_checkpoint(checkpoint)
    assert not model.training
    print(*(row["probabilities"]["positive"].hex() for row in model.predict(TEXTS)))


def test_another_process_gives_the_same_probabilities(checkpoint, tmp_path, capsys):
    print_probabilities(checkpoint)
    assert run(tmp_path, print_probabilities, checkpoint) == capsys.readouterr().out


def test_the_trained_head_comes_back(checkpoint):
    loaded = LoRAClassifier.load_from_checkpoint(checkpoint)
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert torch.equal(loaded.head.weight, stored["head.weight"])
    assert any(tensor.abs().sum() > 0 for name, tensor in stored.items() if name.endswith("lora_B"))


def test_full_fine_tuning_keeps_its_encoder(tiny_encoder, glue_folder, tmp_path):
    model = LoRAClassifier(encoder=tiny_encoder(), method="full", learning_rate=1e-2)
    runner = trainer(tmp_path)
    runner.fit(model, SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder()))
    runner.save_checkpoint(tmp_path / "full.ckpt")
    loaded = LoRAClassifier.load_from_checkpoint(tmp_path / "full.ckpt")
    assert loaded.predict(TEXTS) == model.predict(TEXTS)


@pytest.mark.shared
def test_size_on_roberta_bases_shape(shared, tmp_path, monkeypatch):
    """At r = 4: 148,994 weights in fp32, and with the optimizer's two moments under 2 MB."""
    folder = str(shared / "models" / "roberta-base")
    monkeypatch.setattr("lora_pl.model.base.load_encoder", lambda name, **options: random_encoder(name))
    model = LoRAClassifier(encoder=folder)
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nfine\t1\ndull\t0\n")
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nfine\t1\ndull\t0\n")
    runner = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    runner.fit(model, SentenceDataModule(source=str(tmp_path), encoder=folder))
    path = tmp_path / "size.ckpt"
    runner.save_checkpoint(path)
    assert path.stat().st_size < 2_000_000
    stored = read_checkpoint(path)
    torch.save(stored["state_dict"], tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").stat().st_size == pytest.approx(4 * 148_994, rel=0.05)
    assert len(stored["optimizer_states"][0]["state"]) == 50


def test_another_base_under_the_same_name_is_an_error(tiny_encoder, checkpoint, tmp_path):
    from lora_pl.encoder.loading import load_encoder, load_tokenizer

    other = load_encoder(tiny_encoder())
    with torch.no_grad():
        other.embeddings.word_embeddings.weight[5] += 0.1
    other.save_pretrained(tmp_path / "other")
    load_tokenizer(tiny_encoder()).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError) as error:
        LoRAClassifier.load_from_checkpoint(checkpoint, encoder=str(tmp_path / "other"))
    assert error.value.key == "checkpoint.base"


def test_another_vocabulary_is_an_error(tiny_encoder, checkpoint, tmp_path):
    from lora_pl.encoder.loading import load_encoder, load_tokenizer

    load_encoder(tiny_encoder()).save_pretrained(tmp_path / "other")
    tokenizer = load_tokenizer(tiny_encoder())
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError) as error:
        LoRAClassifier.load_from_checkpoint(checkpoint, encoder=str(tmp_path / "other"))
    assert error.value.key == "checkpoint.base"


def test_a_base_that_moved_is_given_by_hand(tiny_encoder, checkpoint, tmp_path):
    from shutil import copytree

    copytree(tiny_encoder(), tmp_path / "moved")
    model = LoRAClassifier.load_from_checkpoint(checkpoint, encoder=str(tmp_path / "moved"))
    assert model.predict(TEXTS) == LoRAClassifier.load_from_checkpoint(checkpoint).predict(TEXTS)


@pytest.mark.parametrize(
    "changes",
    [{"lora": LoRAConfig(r=2)}, {"head": "architecture"}, {"method": "head"}, {"label_names": ["bad", "good"]}],
)
def test_another_shape_is_an_error(changes, checkpoint):
    with pytest.raises(UserError) as error:
        LoRAClassifier.load_from_checkpoint(checkpoint, **changes)
    assert error.value.key == "checkpoint.settings"


class Harm:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def damaged(kind: str, whole: Path, path: Path) -> Path:
    if kind == "truncated":
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    elif kind == "text":
        path.write_text("sentence\tlabel")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "foreign":
        torch.save({"state_dict": {}, "epoch": 1}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Harm()}))
    elif kind == "torch pickle":
        torch.save({"state_dict": Harm()}, path)
    elif kind == "lightning":
        stored = torch.load(whole, weights_only=True)
        stored["hyper_parameters"]["x"] = Harm()
        torch.save(stored, path)
    return path


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("missing", "missing"),
        ("empty", "damaged"),
        ("truncated", "damaged"),
        ("text", "damaged"),
        ("foreign", "format"),
        ("pickle", "refused"),
        ("torch pickle", "refused"),
        ("lightning", "refused"),
    ],
)
def test_damaged_and_foreign_files(kind, key, checkpoint, tmp_path):
    path = damaged(kind, checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(UserError) as error:
        LoRAClassifier.load_from_checkpoint(path)
    assert error.value.key == f"checkpoint.{key}"
    assert len(str(error.value).splitlines()) == 1
    assert not Path("harmed").exists()


def test_a_runs_folder_names_the_checkpoint_in_it(checkpoint):
    with pytest.raises(UserError, match=r"but a folder; give .*best\.ckpt$") as error:
        read_checkpoint(checkpoint.parent)
    assert error.value.key == "checkpoint.missing"


def test_a_missing_checkpoint_names_those_beside_it(checkpoint, tmp_path):
    shutil.copy(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(UserError) as error:
        read_checkpoint(tmp_path / "best.ckpt")
    path = tmp_path / "best.ckpt"
    assert str(error.value) == f"checkpoint.missing: {path}: no such checkpoint; in {tmp_path} there is last.ckpt"


def test_an_option_of_another_version_is_named(checkpoint, tmp_path):
    stored = torch.load(checkpoint, weights_only=True)
    stored["hyper_parameters"]["rank"] = 4
    torch.save(stored, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="rank") as error:
        LoRAClassifier.load_from_checkpoint(tmp_path / "x.ckpt")
    assert error.value.key == "checkpoint.version"


def test_missing_and_unexpected_tensors_are_listed(checkpoint, tmp_path):
    stored = torch.load(checkpoint, weights_only=True)
    stored["state_dict"]["head.extra"] = stored["state_dict"].pop("head.bias")
    torch.save(stored, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"1 missing: head.bias; 1 unexpected: head.extra"):
        LoRAClassifier.load_from_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_full_disk_leaves_the_earlier_checkpoint_whole(error, tmp_path, monkeypatch):
    writer, path = WholeFileCheckpointIO(), tmp_path / "last.ckpt"
    writer.save_checkpoint({"step": 1}, path)
    before = path.read_bytes()

    def fill(checkpoint, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(UserError) as raised:
        writer.save_checkpoint({"step": 2}, path)
    assert raised.value.key == "checkpoint.unwritten"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_resume_continues_the_count_of_steps(tiny_encoder, glue_folder, tmp_path):
    def runner(epochs: int) -> Trainer:
        return trainer(tmp_path, max_epochs=epochs, max_steps=-1, plugins=[WholeFileCheckpointIO()])

    def parts():
        encoder = tiny_encoder()
        return LoRAClassifier(encoder=encoder), SentenceDataModule(
            source=str(glue_folder), encoder=encoder, batch_size=8
        )

    first = runner(1)
    first.fit(*parts())
    first.save_checkpoint(tmp_path / "one.ckpt")
    second = runner(3)
    model, data = parts()
    second.fit(model, data, ckpt_path=tmp_path / "one.ckpt")
    assert first.global_step == 6
    assert second.global_step == 18
    assert second.optimizers[0].state[model.head.weight]["step"] == 18
