import pytest
import torch

from lora_pl import LoRAClassifier
from lora_pl.callbacks.parameter_report import parameter_rows
from lora_pl.cli.main import main
from lora_pl.cli.params import counts_at_rank, pooler_parameters
from lora_pl.encoder.loading import load_config
from lora_pl.lora import LoRAConfig
from lora_pl.model.parameters import count_parameters
from tests.cli.mistakes import fails


def test_rows_add_up(tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder())
    rows = {name: n for name, n, _ in parameter_rows(model.encoder, model.head)}
    assert rows["LoRA on encoder.layer.*.attention.self.query (2 layers)"] == 2 * 2 * 16 * 4
    assert rows["LoRA"] == 512
    assert rows["head"] == 34
    assert rows["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert rows["frozen"] == sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert rows["total"] == rows["trainable"] + rows["frozen"]


@pytest.mark.parametrize(("settings", "expected"), [
    ({"train_biases": "lora"}, 4 * 16), ({"train_norms": True}, 5 * 2 * 16),
    ({"train_biases": "all"}, 2 * (5 * 16 + 32) + 5 * 16), ({"method": "full"}, None)])  # fmt: skip
def test_biases_and_norms_have_a_row(settings, expected, tiny_encoder):
    model = LoRAClassifier(encoder=tiny_encoder(), **settings)
    rows = {name: n for name, n, _ in parameter_rows(model.encoder, model.head)}
    assert rows.get("biases and norms") == expected
    assert rows["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert rows["total"] == rows["trainable"] + rows["frozen"] == sum(p.numel() for p in model.parameters())


@pytest.mark.shared
@pytest.mark.parametrize(("r", "trainable"), [(1, 38_402), (2, 75_266), (4, 148_994), (8, 296_450)])
def test_the_seeds_counts(r, trainable, shared):
    config = load_config(str(shared / "models" / "roberta-base"))
    counts = counts_at_rank(config, LoRAConfig(r=r), "linear", 2)
    assert counts.trainable == trainable
    assert counts.lora == 36_864 * r
    if r == 4:
        assert counts.encoder + counts.lora + pooler_parameters(config) == 124_793_088


@pytest.mark.shared
def test_the_papers_count_with_the_architectures_head(shared):
    config = load_config(str(shared / "models" / "roberta-base"))
    assert counts_at_rank(config, LoRAConfig(r=8), "architecture", 2).trainable == 887_042


def test_counting_loads_no_weight(tiny_encoder, monkeypatch):
    from lora_pl.encoder import loading

    monkeypatch.setattr(loading, "load_encoder", lambda *args, **kwargs: pytest.fail("weights were loaded"))
    counts = counts_at_rank(load_config(tiny_encoder()), LoRAConfig(r=2), "linear", 3)
    assert counts.head == 3 * 16 + 3
    assert torch.get_default_device().type == "cpu"


@pytest.mark.parametrize("placement", [
    {"target_modules": "all-linear"}, {"target_modules": "mlp", "layers": 1}, {"target_modules": "attention",
     "exclude": "key"}])  # fmt: skip
def test_the_command_counts_what_is_trained(placement, tiny_encoder, capsys):
    model = LoRAClassifier(encoder=tiny_encoder(), lora=LoRAConfig(r=2, **placement))
    flags = [f"--model.lora.{name}={value}" for name, value in placement.items()]
    assert main(["params", "--model.encoder", tiny_encoder(), "--ranks", "2", *flags]) == 0
    trained = count_parameters(model.encoder, model.head)
    said = capsys.readouterr().out
    assert f"{trained.lora:,} " in said
    assert "biases" not in said
    assert trained.trainable == trained.lora + trained.head


def test_the_command_counts_biases_and_norms(tiny_encoder, capsys):
    flags = ["--model.train_biases", "all", "--model.train_norms", "true"]
    assert main(["params", "--model.encoder", tiny_encoder(), "--ranks", "2", *flags]) == 0
    model = LoRAClassifier(encoder=tiny_encoder(), lora=LoRAConfig(r=2), train_biases="all", train_norms=True)
    trained = count_parameters(model.encoder, model.head)
    said = capsys.readouterr().out
    assert "biases" in said
    assert f" {trained.in_place:,} " in said
    assert f" {trained.trainable:,} " in said
    assert fails(capsys, "params", "--model.encoder", tiny_encoder("modernbert"), *flags) == "model.train_biases"
