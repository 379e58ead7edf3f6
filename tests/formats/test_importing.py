"""External adapters, whole and damaged."""

import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_pl import LoRAClassifier
from lora_pl.errors import UserError
from lora_pl.formats.exporting import export_checkpoint
from lora_pl.formats.importing import ImportOptions, import_adapter, load_external
from lora_pl.formats.merging import merged_state
from lora_pl.lora import VARIANTS, LoRAConfig
from tests.formats.conftest import TEXTS, saved
from tests.storage.test_checkpoint import Harm


def state_of(model: LoRAClassifier, a: str, b: str, head: dict[str, str]) -> dict[str, torch.Tensor]:
    """The model's tensors by another program's names."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("encoder."):
            state["roberta." + name.removeprefix("encoder.").replace("lora_A", a).replace("lora_B", b)] = tensor
        else:
            state[head[name.removeprefix("head.")]] = tensor
    return state


LINEAR = {"weight": "classifier.weight", "bias": "classifier.bias"}
STOCK = {f"{x}.{y}": f"classifier.{x}.{y}" for x in ("dense", "out_proj") for y in ("weight", "bias")}


@pytest.mark.parametrize("head", ["linear", "architecture"])
@pytest.mark.parametrize("before", ["", "module."])
def test_a_state_dict_of_loralib(head, before, make_model, tiny_encoder, tmp_path):
    model = make_model(head=head)
    state = state_of(model, "lora_A", "lora_B", LINEAR if head == "linear" else STOCK)
    torch.save({before + name: tensor for name, tensor in state.items()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"does not say alpha.*give --lora_alpha \(r is 4\)"):
        load_external(tmp_path / "x.pt", ImportOptions(encoder=tiny_encoder()))
    found = load_external(tmp_path / "x.pt", ImportOptions(encoder=tiny_encoder(), lora_alpha=16, task="sst2"))
    assert torch.equal(found.logits(TEXTS), model.logits(TEXTS))
    assert found.label_names == ["negative", "positive"]
    assert found.hparams["lora"]["target_modules"] == ["query", "value"]


@pytest.mark.parametrize("layout", ["flat", "with its configuration"])
def test_the_original_repositorys_two_layouts(layout, make_model, tiny_encoder, tmp_path):
    model = make_model()
    state = state_of(model, "A", "B", LINEAR)
    whole = {"lora": state, "metrics": {"epoch_1": {"val_acc": 0.9}}, "config": {
        "model": tiny_encoder(), "task": "SST-2", "r": 4, "alpha": 16, "max_length": 20}}  # fmt: skip
    torch.save(state if layout == "flat" else whole, tmp_path / "x.pt")
    options = ImportOptions(tiny_encoder(), 16, "sst2") if layout == "flat" else ImportOptions()
    found = import_adapter(tmp_path / "x.pt", tmp_path / "x.ckpt", options)
    assert torch.equal(found.logits(TEXTS), model.logits(TEXTS))
    assert found.max_length == (38 if layout == "flat" else 20)
    assert LoRAClassifier.load_from_checkpoint(tmp_path / "x.ckpt").predict(list(TEXTS)) == model.predict(list(TEXTS))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "r", "alpha"), [("lora_roberta_sst2", 4, None), ("ablation_r1", 1, 16), ("ablation_r2", 2, 16)]
)
def test_the_original_repositorys_adapters_tensor_by_tensor(name, r, alpha, shared, tmp_path, monkeypatch):
    """On roberta-base's shape with random weights: names, shapes, scaling, and the merged matrices by arithmetic."""
    from lora_pl.encoder.loading import build_encoder, load_config
    from lora_pl.model import base

    monkeypatch.setattr(base, "load_encoder", lambda name, **options: build_encoder(load_config(name)).train())
    file = shared / "peers" / "seed" / f"{name}.pt"
    stored = torch.load(file, weights_only=True)
    options = ImportOptions(str(shared / "models" / "roberta-base"), alpha, "sst2")
    model = load_external(file, options)
    tensors = stored.get("lora", stored)
    assert len(tensors) == 50
    assert len(model.adapted) == 24
    assert model.hparams["lora"]["r"] == r
    assert (
        sum(t.numel() for t in model.state_dict().values())
        == 36_864 * r + 1_538
        == sum(t.numel() for t in tensors.values())
    )
    assert torch.equal(model.head.weight, tensors["classifier.weight"])
    assert torch.equal(model.head.bias, tensors["classifier.bias"])
    merged = merged_state(model.encoder, torch.float32)
    for layer in range(12):
        for part in ("query", "value"):
            own = f"encoder.layer.{layer}.attention.self.{part}"
            a, b = tensors[f"roberta.{own}.A"], tensors[f"roberta.{own}.B"]
            base = model.encoder.get_submodule(own).weight
            torch.testing.assert_close(merged[f"{own}.weight"], base + 16 / r * (b @ a), rtol=0, atol=1e-6)
            assert not torch.equal(merged[f"{own}.weight"], base)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_export_comes_back(variant, make_model, tmp_path):
    model = make_model("distilbert", task="mnli", lora=LoRAConfig(variant=variant))
    export_checkpoint(saved(model, tmp_path), tmp_path / "adapter", "adapter")
    again = import_adapter(tmp_path / "adapter", tmp_path / "again.ckpt", ImportOptions())
    assert dict(again.hparams) == dict(model.hparams)
    assert torch.equal(again.logits([("a", "b")]), model.logits([("a", "b")]))


@pytest.fixture
def folder(make_model, tmp_path) -> Path:
    """An adapter as PEFT writes it, without lora_pl's own record."""
    export_checkpoint(saved(make_model(), tmp_path), tmp_path / "adapter", "peft", sentences=8)
    (tmp_path / "adapter" / "lora_pl.json").unlink()
    return tmp_path / "adapter"


def fails(path: Path, tmp_path: Path, options=None) -> str:
    """What the import says when it fails as it should, leaving nothing behind."""
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        import_adapter(path, tmp_path / "out" / "x.ckpt", options or ImportOptions())
    assert set(tmp_path.rglob("*")) == before
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_damaged_tensors(folder, tmp_path, tiny_encoder):
    weights = folder / "adapter_model.safetensors"
    whole = load_file(weights)
    a = next(name for name in whole if name.endswith("0.attention.self.query.lora_A.weight"))
    b = a.replace("lora_A", "lora_B")

    def said(state) -> str:
        save_file(state, weights)
        return fails(folder, tmp_path)

    without_a = said({k: v for k, v in whole.items() if k != a})
    assert f"missing tensors: {a.removeprefix('base_model.model.')}" in without_a
    gone = said({k: v for k, v in whole.items() if k not in (a, b)})
    assert "no tensors for the layers roberta.encoder.layer.0.attention.self.query" in gone
    other_size = said({**whole, a: whole[a][:, :8].contiguous()})
    assert "expected lora_A (4, 16) for this encoder, got (4, 8); is it the base of this adapter?" in other_size
    assert "says r = 4" in said({**whole, a: whole[a][:2].contiguous(), b: whole[b][:, :2].contiguous()})
    assert "lora_A.weight holds inf or NaN" in said({**whole, a: whole[a] * float("nan")})
    head = "base_model.model.classifier.out_proj.weight"
    assert "out_proj.weight" in said({k: v for k, v in whole.items() if k != head})
    assert "unknown tensors: more" in said({**whole, "base_model.model.more": whole[a].clone()})
    other = {k.replace("attention.self.query", "attention.self.quary"): v for k, v in whole.items()}
    assert "no linear layer" in said(other)
    weights.write_bytes(weights.read_bytes()[:300])
    assert "damaged or no safetensors file" in fails(folder, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": "auto"}, "can't represent: use_dora = auto"),
        ({"new_invention": {"gamma": 3}}, "can't represent: new_invention"),
        ({"peft_type": "IA3"}, "expected a LoRA adapter (peft_type LORA), got 'IA3'"),
        ({"task_type": "CAUSAL_LM"}, "expected task_type SEQ_CLS"),
        ({"r": "four"}, "r = four"),
        ({"base_model_name_or_path": "./nowhere"}, "./nowhere is no folder"),
    ],
)
def test_configurations(changes, said, folder, tmp_path):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    assert said in fails(folder, tmp_path)


def test_a_damaged_configuration(folder, tmp_path):
    (folder / "adapter_config.json").write_text('{"r": 4')
    assert "adapter_config.json is damaged" in fails(folder, tmp_path)
    (folder / "adapter_config.json").unlink()
    assert "expected adapter_model.safetensors and adapter_config.json or" in fails(folder, tmp_path)


def test_an_adapter_for_another_base(make_model, tiny_encoder, tmp_path):
    from lora_pl.encoder.loading import load_encoder, load_tokenizer

    other = load_encoder(tiny_encoder())
    with torch.no_grad():
        other.embeddings.word_embeddings.weight[5] += 0.1
    other.save_pretrained(tmp_path / "other")
    load_tokenizer(tiny_encoder()).save_pretrained(tmp_path / "other")
    path = saved(make_model(), tmp_path)
    for format in ("peft", "adapter"):
        export_checkpoint(path, tmp_path / format, format, sentences=8)
        assert "are not those of" in fails(tmp_path / format, tmp_path, ImportOptions(encoder=str(tmp_path / "other")))
    small = fails(tmp_path / "peft", tmp_path, ImportOptions(encoder="package://lora_pl/encoder/mini"))
    assert "is it the base of this adapter?" in small or "expected (..., 256)" in small


def test_files_that_would_run_code_or_are_no_adapter(tmp_path, tiny_encoder):
    options = ImportOptions(encoder=tiny_encoder(), lora_alpha=16)
    for name, content, said in (
        ("code.pt", {"x.lora_A": Harm()}, "could run code"),
        ("list.pt", [1, 2], "expected a state dict"),
        ("words.pt", {"x.lora_A": "abc", "x.lora_B": "abc"}, "is no tensor"),
        ("other.pt", {"weight": torch.zeros(2)}, "no adapter was recognized"),
    ):
        torch.save(content, tmp_path / name)
        assert said in fails(tmp_path / name, tmp_path, options)
    (tmp_path / "text.pt").write_text("no tensor in here")
    assert "text.pt" in fails(tmp_path / "text.pt", tmp_path, options)
    (tmp_path / "empty.pt").touch()
    assert "the file is empty" in fails(tmp_path / "empty.pt", tmp_path, options)
    assert "no such file" in fails(tmp_path / "none.pt", tmp_path, options)
    assert not Path("harmed").exists()


def test_a_full_disk(folder, tmp_path, monkeypatch):
    def fill(checkpoint, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(UserError, match="No space left on device"):
        import_adapter(folder, tmp_path / "x.ckpt", ImportOptions())
    assert not list(tmp_path.glob("*x.ckpt*"))


def test_classes_and_tasks_that_do_not_fit(folder, tmp_path):
    assert "the head has 2 classes, got 3 names" in fails(folder, tmp_path, ImportOptions(task="mnli"))
    (tmp_path / "taken.ckpt").touch()
    with pytest.raises(UserError, match="is there already"):
        import_adapter(folder, tmp_path / "taken.ckpt", ImportOptions())
    own = load_external(folder, ImportOptions(label_names=["bad", "good"]))
    assert own.predict(["fine"])[0]["label"] in ("bad", "good")
