"""External adapters, whole and damaged."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_pl import LoRAClassifier
from lora_pl.encoder import EMBEDDED
from lora_pl.errors import UserError
from lora_pl.formats.exporting import export_checkpoint
from lora_pl.formats.importing import ImportOptions, import_adapter, load_external
from lora_pl.formats.merging import merged_state
from lora_pl.lora import VARIANTS, LoRAConfig
from tests.formats.conftest import TEXTS, saved
from tests.storage.test_checkpoint import Harm
from tests.support import random_encoder


def state_of(model: LoRAClassifier, a: str, b: str, head: dict[str, str]) -> dict[str, torch.Tensor]:
    """The model's tensors by another program's names."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("encoder."):
            state["roberta." + name.removeprefix("encoder.").replace("lora_A", a).replace("lora_B", b)] = tensor
        else:
            state[head[name.removeprefix("head.")]] = tensor
    return state


BOTH = {"train_biases": "all", "train_norms": True}
LINEAR = {"weight": "classifier.weight", "bias": "classifier.bias"}
STOCK = {f"{x}.{y}": f"classifier.{x}.{y}" for x in ("dense", "out_proj") for y in ("weight", "bias")}


@pytest.mark.parametrize("head", ["linear", "architecture"])
@pytest.mark.parametrize("before", ["", "module."])
def test_a_state_dict_of_loralib(head, before, make_model, tiny_encoder, tmp_path):
    model = make_model(head=head)
    state = state_of(model, "lora_A", "lora_B", LINEAR if head == "linear" else STOCK)
    torch.save({before + name: tensor for name, tensor in state.items()}, tmp_path / "x.pt")
    for options, key in ((ImportOptions(tiny_encoder()), "import.alpha"), (ImportOptions(), "import.encoder")):
        with pytest.raises(UserError) as error:
            load_external(tmp_path / "x.pt", options)
        assert error.value.key == key
    found = load_external(tmp_path / "x.pt", ImportOptions(encoder=tiny_encoder(), lora_alpha=16, task="sst2"))
    assert torch.equal(found.logits(TEXTS), model.logits(TEXTS))
    assert found.label_names == ["negative", "positive"]
    assert found.hparams["lora"]["target_modules"] == ["query", "value"]


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_a_head_of_several_labels(names, make_model, tiny_encoder, tmp_path):
    model = make_model(task="multilabel", label_names=names)
    torch.save(state_of(model, "lora_A", "lora_B", LINEAR), tmp_path / "x.pt")
    given = {"encoder": tiny_encoder(), "lora_alpha": 16, "task": "multilabel"}
    for own in ([f"LABEL_{index}" for index in range(len(names))], names):
        found = load_external(tmp_path / "x.pt", ImportOptions(**given, label_names=own if own is names else None))
        assert (found.task.problem_type, found.label_names) == ("multi_label_classification", own)
    assert found.predict(TEXTS) == model.predict(TEXTS)


@pytest.mark.parametrize("settings", [{"train_biases": "lora"}, {"train_biases": "all"}, BOTH])
@pytest.mark.parametrize("before", ["", "module."])
def test_a_state_dict_of_loralib_with_biases(settings, before, make_model, tiny_encoder, tmp_path):
    """`lora_state_dict(model, bias="lora_only")` and `"all"`; with norms what `marked as trainable` too."""
    model = make_model(head="architecture", **settings)
    state = {before + name: tensor for name, tensor in state_of(model, "lora_A", "lora_B", STOCK).items()}
    options = ImportOptions(encoder=tiny_encoder(), lora_alpha=16, task="sst2")
    torch.save(state, tmp_path / "x.pt")
    found = load_external(tmp_path / "x.pt", options)
    assert torch.equal(found.logits(TEXTS), model.logits(TEXTS))
    assert {name: found.hparams[name] for name in BOTH} == {name: model.hparams[name] for name in BOTH}
    name = next(name for name in state if name.endswith("layer.1.attention.self.value.bias"))
    for key, wrong in (
        ("adapter.missing", {key: tensor for key, tensor in state.items() if key != name}),
        ("adapter.shape", {**state, name: state[name][:8]}),
        ("adapter.shape", {**state, name: torch.zeros(())}),
        ("adapter.damaged", {**state, name: state[name] * torch.nan}),
        ("adapter.damaged", {**state, name: state[name].long()}),
    ):
        torch.save(wrong, tmp_path / "x.pt")
        assert fails(tmp_path / "x.pt", tmp_path, options)[0] == key


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


@pytest.fixture(scope="module")
def roberta_base(shared):
    """roberta-base's shape with random weights."""
    return random_encoder(str(shared / "models" / "roberta-base"))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "r", "alpha"),
    [("lora_roberta_sst2", 4, None), ("ablation_r1", 1, 16),
     pytest.param("ablation_r2", 2, 16, marks=pytest.mark.attack)],  # a layout again, in half a gibibyte
)  # fmt: skip
def test_the_original_repositorys_adapters_tensor_by_tensor(name, r, alpha, roberta_base, shared, monkeypatch):
    """Names, shapes, scaling, and the merged matrices by arithmetic."""
    monkeypatch.setattr("lora_pl.model.base.load_encoder", lambda name, **options: copy.deepcopy(roberta_base))
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


@pytest.fixture(scope="module")
def of_peft(make_model, tmp_path_factory) -> Path:
    """An adapter as PEFT writes it, without lora_pl's own record."""
    folder = tmp_path_factory.mktemp("of_peft")
    export_checkpoint(saved(make_model(), folder), folder / "adapter", "peft", sentences=8)
    (folder / "adapter" / "lora_pl.json").unlink()
    return folder / "adapter"


@pytest.fixture
def folder(of_peft, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(of_peft, tmp_path / "adapter"))


def fails(path: Path, tmp_path: Path, options=None) -> tuple[str, str]:
    """Key and message of the import that fails as it should, leaving nothing behind."""
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        import_adapter(path, tmp_path / "out" / "x.ckpt", options or ImportOptions())
    assert set(tmp_path.rglob("*")) == before
    assert len(str(error.value).splitlines()) == 1
    return error.value.key, str(error.value)


def test_damaged_tensors(folder, tmp_path, tiny_encoder):
    weights = folder / "adapter_model.safetensors"
    whole = load_file(weights)
    a = next(name for name in whole if name.endswith("0.attention.self.query.lora_A.weight"))
    b = a.replace("lora_A", "lora_B")

    head = "base_model.model.classifier.out_proj.weight"
    layer = a.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    for key, named, state in (
        ("adapter.missing", layer, {k: v for k, v in whole.items() if k != a}),
        ("adapter.missing", layer, {k: v for k, v in whole.items() if k not in (a, b)}),
        ("adapter.missing", "all", {k: v for k, v in whole.items() if ".lora_" not in k}),
        ("adapter.shape", layer, {**whole, a: whole[a][:, :8].contiguous()}),
        ("adapter.shape", layer, {**whole, a: whole[a][:2].contiguous(), b: whole[b][:, :2].contiguous()}),
        ("adapter.shape", layer, {**whole, a: whole[a][:0].contiguous(), b: whole[b][:, :0].contiguous()}),
        ("adapter.damaged", layer, {**whole, a: whole[a] * float("nan")}),
        ("adapter.damaged", "x.y", {**whole, "x.y": whole[a].clone()}),
        ("adapter.head", "out_proj.weight", {k: v for k, v in whole.items() if k != head}),
        ("adapter.head", "out_proj.weight", {**whole, head: whole[head][:, :8].contiguous()}),
        ("adapter.head", "more", {**whole, "base_model.model.more": whole[a].clone()}),
        ("adapter.base", "quary", {k.replace("self.query", "self.quary"): v for k, v in whole.items()}),
    ):
        save_file(state, weights)
        got, said = fails(folder, tmp_path)
        assert got == key
        assert named in said
    weights.write_bytes(weights.read_bytes()[:300])
    assert fails(folder, tmp_path)[0] == "adapter.damaged"


def test_biases_and_norms_that_do_not_fit(make_model, tmp_path):
    export_checkpoint(saved(make_model(**BOTH), tmp_path), tmp_path / "adapter", "peft", sentences=8)
    weights, config = tmp_path / "adapter" / "adapter_model.safetensors", tmp_path / "adapter" / "adapter_config.json"
    whole, settings = load_file(weights), json.loads(config.read_text())
    for own in ("embeddings.LayerNorm.weight", "layer.0.attention.self.key.bias", "self.query.base_layer.bias"):
        name = next(name for name in whole if name.endswith(own))
        for key, state in (
            ("adapter.missing", {k: v for k, v in whole.items() if k != name}),
            ("adapter.shape", {**whole, name: whole[name][:8].contiguous()}),
            ("adapter.shape", {**whole, name: whole[name][:0].contiguous()}),
            ("adapter.shape", {**whole, name: whole[name][None].contiguous()}),
            ("adapter.damaged", {**whole, name: whole[name] * float("inf")}),
            ("adapter.damaged", {**whole, name: whole[name].long()}),
            ("adapter.head", {**{k: v for k, v in whole.items() if k != name}, f"{name}s": whole[name]}),
        ):
            save_file(state, weights)
            assert fails(tmp_path / "adapter", tmp_path)[0] == key
    save_file(whole, weights)
    for bias, key in (("none", "adapter.missing"), ("lora_only", "adapter.missing"), ("some", "adapter.unsupported")):
        config.write_text(json.dumps({**settings, "bias": bias}))
        assert fails(tmp_path / "adapter", tmp_path)[0] == key


@pytest.mark.parametrize(
    ("changes", "key", "named"),
    [
        ({"use_dora": "auto"}, "adapter.unsupported", "use_dora"),
        ({"new_invention": {"gamma": 3}}, "adapter.unsupported", "new_invention"),
        ({"peft_type": "IA3"}, "adapter.unsupported", "IA3"),
        ({"task_type": "CAUSAL_LM"}, "adapter.unsupported", "CAUSAL_LM"),
        ({"r": "four"}, "adapter.unsupported", "four"),
        ({"rank_pattern": {"query[": 2}}, "adapter.damaged", "pattern"),
        ({"base_model_name_or_path": "./nowhere"}, "model.encoder", "./nowhere"),
        ({"base_model_name_or_path": None}, "import.encoder", "--encoder"),
    ],
)
def test_configurations(changes, key, named, folder, tmp_path):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    got, said = fails(folder, tmp_path)
    assert got == key
    assert named in said


def test_a_damaged_configuration(folder, tmp_path):
    (folder / "adapter_config.json").write_text('{"r": 4')
    assert fails(folder, tmp_path)[0] == "adapter.damaged"
    (folder / "adapter_config.json").unlink()
    assert fails(folder, tmp_path)[0] == "adapter.unknown"


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
        key, _ = fails(tmp_path / format, tmp_path, ImportOptions(encoder=str(tmp_path / "other")))
        assert key == "checkpoint.base"
    assert fails(tmp_path / "peft", tmp_path, ImportOptions(EMBEDDED))[0] in ("adapter.shape", "adapter.head")


def test_files_that_would_run_code_or_are_no_adapter(tmp_path, tiny_encoder):
    options = ImportOptions(encoder=tiny_encoder(), lora_alpha=16)
    for name, content, key in (
        ("code.pt", {"x.lora_A": Harm()}, "adapter.refused"),
        ("list.pt", [1, 2], "adapter.damaged"),
        ("words.pt", {"x.lora_A": "abc", "x.lora_B": "abc"}, "adapter.damaged"),
        ("other.pt", {"weight": torch.zeros(2)}, "adapter.unknown"),
        ("none.of.them.pt", {"lora": None, "x.A": None, "config": {"r": 4}}, "adapter.damaged"),
    ):
        torch.save(content, tmp_path / name)
        assert fails(tmp_path / name, tmp_path, options)[0] == key
    torch.save({"x.lora_A": torch.zeros(1, 1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert fails(tmp_path / "old.pt", tmp_path, options)[0] == "adapter.refused"
    for name, content, key in (
        ("text.pt", b"no tensor in here", "adapter.damaged"),
        ("empty.pt", b"", "adapter.damaged"),
        ("text.safetensors", b"no tensor in here", "adapter.damaged"),
        ("folder.zip", b"PK", "adapter.unknown"),
    ):
        (tmp_path / name).write_bytes(content)
        assert fails(tmp_path / name, tmp_path, options)[0] == key
    for name in ("none.pt", "none.safetensors"):
        assert fails(tmp_path / name, tmp_path, options)[0] == "adapter.missing"
    assert not Path("harmed").exists()


def test_a_full_disk(folder, tmp_path, monkeypatch):
    def fill(checkpoint, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(UserError) as error:
        import_adapter(folder, tmp_path / "x.ckpt", ImportOptions())
    assert "No space left on device" in str(error.value)
    assert not list(tmp_path.glob("*x.ckpt*"))


def test_classes_and_tasks_that_do_not_fit(folder, tmp_path):
    assert fails(folder, tmp_path, ImportOptions(task="mnli"))[0] == "import.label_names"
    (tmp_path / "taken.ckpt").touch()
    with pytest.raises(UserError) as error:
        import_adapter(folder, tmp_path / "taken.ckpt", ImportOptions())
    assert error.value.key == "import.taken"
    own = load_external(folder, ImportOptions(label_names=["bad", "good"]))
    assert own.predict(["fine"])[0]["label"] in ("bad", "good")
