"""`start_from`: what a new model takes from a checkpoint, what is refused, and what a checkpoint then needs."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything

from lora_pl import LoRAClassifier, LoRAConfig
from lora_pl.errors import UserError
from lora_pl.formats.importing import ImportOptions, checkpoint_of, import_adapter
from lora_pl.lora import VARIANTS
from lora_pl.model.start import OF_HEAD
from lora_pl.storage.checkpoint import read_checkpoint
from lora_pl.storage.settings import EQUAL
from tests.attack.test_settings import OTHER
from tests.model.test_classifier import TEXTS

CLASSES = {
    "sst2": {},
    "mrpc": {"task": "mrpc"},
    "mnli": {"task": "mnli"},
    "stsb": {"task": "stsb"},
    "rte": {"task": "rte"},
    "qnli": {"task": "qnli"},
    "wnli": {"task": "wnli"},
    "custom": {"task": "custom", "label_names": ["entailment", "not_entailment"]},
}


@pytest.fixture
def trained(tiny_encoder, tmp_path):
    """Save a model whose every trained tensor is random."""

    def save(name: str = "start.ckpt", **settings) -> Path:
        model = LoRAClassifier(**{"encoder": tiny_encoder(), **settings})
        for tensor in model.state_dict().values():
            tensor.normal_() if tensor.is_floating_point() else None
        torch.save(checkpoint_of(model), tmp_path / name)
        return tmp_path / name

    return save


def made(seed: int = 3, **settings) -> LoRAClassifier:
    seed_everything(seed, verbose=False)
    return LoRAClassifier(**settings)


def taken(model: LoRAClassifier, path: Path) -> set[str]:
    """The names of the tensors that are those of the checkpoint."""
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name for name, tensor in model.state_dict().items() if name in state and torch.equal(tensor, state[name])}


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [("mrpc", "mrpc", True), ("stsb", "stsb", True), ("qnli", "rte", True), ("custom", "rte", True),
     ("mnli", "rte", False), ("mnli", "mrpc", False), ("mnli", "stsb", False), ("wnli", "rte", False),
     ("sst2", "mrpc", False)],
)  # fmt: skip
def test_the_adapter_is_taken_and_the_head_where_it_answers_the_same(before, now, same, trained, tiny_encoder, capsys):
    path = trained(**CLASSES[before])
    capsys.readouterr()
    model = made(encoder=tiny_encoder(), **CLASSES[now], start_from=path)
    said = capsys.readouterr().err
    assert said.count("start: ") == 1
    assert ("adapter and head" in said, "head is drawn" in said) == (same, not same)
    names = set(model.state_dict())
    assert taken(model, path) == (names if same else {name for name in names if not name.startswith("head.")})


def test_another_kind_of_head_is_drawn(trained, tiny_encoder):
    path = trained(head="architecture")
    assert not [name for name in taken(made(encoder=tiny_encoder(), start_from=path), path) if name.startswith("head.")]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_starts_as_the_checkpoint_computes(variant, trained, tiny_encoder):
    lora = LoRAConfig(r=2, variant=variant, rank_pattern={"value": 1}, alpha_pattern={"query": 3.0})
    path = trained(lora=lora)
    model = made(encoder=tiny_encoder(), lora=lora, start_from=path).eval()
    assert model.predict(TEXTS) == LoRAClassifier.load_from_checkpoint(path).predict(TEXTS)


def test_random_draws_are_those_without_a_start(trained, tiny_encoder):
    path = trained(task="mnli")
    without = made(encoder=tiny_encoder())
    after = torch.rand(3)
    model = made(encoder=tiny_encoder(), start_from=path)
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(model.head.weight, without.head.weight)
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in without.parameters()]


def test_full_fine_tuning_starts_from_full_fine_tuning(trained, tiny_encoder):
    path = trained(method="full", task="mnli")
    model = made(encoder=tiny_encoder(), method="full", start_from=path)
    assert taken(model, path) == {name for name in model.state_dict() if not name.startswith("head.")}


def test_a_head_alone(trained, tiny_encoder):
    path = trained(method="head")
    assert taken(made(encoder=tiny_encoder(), method="head", start_from=path), path) == {"head.weight", "head.bias"}
    assert refused(encoder=tiny_encoder(), method="head", task="mrpc", start_from=path)


def refused(**settings) -> str:
    with pytest.raises(UserError) as error:
        LoRAClassifier(**settings).require_start()
    assert error.value.key == "model.start_from"
    return str(error.value)


@pytest.mark.parametrize("key", [key for key in EQUAL if key not in OF_HEAD])
def test_what_decides_the_adapter_must_be_the_same(key, trained, tiny_encoder):
    given = {"lora": {key.removeprefix("lora."): OTHER[key]}} if key.startswith("lora.") else {key: OTHER[key]}
    assert f"{key} = " in refused(encoder=tiny_encoder(), **given, start_from=trained())


@pytest.mark.parametrize("methods", [("lora", "full"), ("full", "lora"), ("head", "lora")])
def test_methods_do_not_mix(methods, trained, tiny_encoder):
    before, now = methods
    refused(encoder=tiny_encoder(), method=now, start_from=trained(method=before))


def test_roles_and_order_do_not_matter(trained, tiny_encoder):
    path = trained(encoder=tiny_encoder("distilbert"), lora={"target_modules": ["q_lin", "v_lin"]})
    lora = LoRAConfig(target_modules=("value", "query"), lora_dropout=0.5, init="kaiming_uniform")
    made(encoder=tiny_encoder("distilbert"), lora=lora, learning_rate=1.0, max_length=9, start_from=path)


def test_another_base(trained, tiny_encoder):
    refused(encoder=tiny_encoder("bert"), start_from=trained())


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint", "folder"])
def test_files_that_are_no_checkpoint(content, tiny_encoder, tmp_path):
    path = tmp_path / "x.ckpt"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    assert str(path) in refused(encoder=tiny_encoder(), start_from=path)


@pytest.mark.parametrize("path", ["", "\0", "x" * 5000, "~nobody-of-this-name/x"])
def test_paths_that_are_none(path, tiny_encoder):
    refused(encoder=tiny_encoder(), start_from=path)


@pytest.mark.parametrize("changes", [{"task": "none"}, {"task": "mnli"}, {"label_names": ["a"]}, {"unknown": 1}])
def test_settings_that_contradict_themselves(changes, trained, tiny_encoder):
    path = trained()
    content = torch.load(path, weights_only=True)
    torch.save({**content, "hyper_parameters": {**content["hyper_parameters"], **changes}}, path)
    assert refused(encoder=tiny_encoder(), start_from=path)


def test_tensors_that_are_not_those_of_the_settings(trained, tiny_encoder):
    path = trained()
    content = torch.load(path, weights_only=True)
    name = next(name for name in content["state_dict"] if name.endswith("lora_A"))
    for change in ({}, {name: torch.zeros(1, 1)}, {name: content["state_dict"][name], "encoder.x": torch.zeros(1)}):
        left = {key: tensor for key, tensor in content["state_dict"].items() if key != name}
        torch.save({**content, "state_dict": {**left, **change}}, path)
        assert "state" in refused(encoder=tiny_encoder(), task="mnli", start_from=path)


def test_an_imported_adapter(tiny_encoder, trained, tmp_path):
    """What `lora_pl import` wrote of a state dict, and of an adapter folder."""
    from lora_pl.formats.exporting import export_checkpoint

    export_checkpoint(trained(), tmp_path / "folder", "peft")
    import_adapter(tmp_path / "folder", tmp_path / "imported.ckpt", ImportOptions())
    model = made(encoder=tiny_encoder(), start_from=tmp_path / "imported.ckpt")
    assert taken(model, tmp_path / "start.ckpt") >= {name for name in model.state_dict() if "lora_" in name}


def test_a_checkpoint_says_what_it_started_from_and_never_needs_it(trained, tiny_encoder, tmp_path):
    start = trained()
    digest = hashlib.sha256(start.read_bytes()).hexdigest()
    torch.save(checkpoint_of(made(encoder=tiny_encoder(), start_from=start)), tmp_path / "a.ckpt")
    start.unlink()
    model = LoRAClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    torch.save(checkpoint_of(model), tmp_path / "b.ckpt")
    stored = read_checkpoint(tmp_path / "b.ckpt")
    assert stored["lora_pl_start"] == {"checkpoint": str(start), "sha256": digest}
    assert stored["hyper_parameters"]["start_from"] == str(start)
    assert read_checkpoint(trained()).get("lora_pl_start") is None


def test_relative_to_the_current_folder(data, trained):
    shutil.copy(trained(), "here.ckpt")
    model = LoRAClassifier.for_data(data, start_from="here.ckpt")
    assert model.hparams["start_from"] == str(Path("here.ckpt").absolute())
    assert taken(model, Path("here.ckpt")) == set(model.state_dict())


def test_a_checkpoint_of_an_earlier_version():
    before = Path(__file__).resolve().parents[1] / "fixtures" / "before"
    path, encoder = before / "lora" / "last.ckpt", str(before / "encoder")
    lora = read_checkpoint(path)["hyper_parameters"]["lora"]
    model = made(encoder=encoder, lora=lora, start_from=path)
    assert taken(model, path) == set(model.state_dict())
