"""Against the real PEFT."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora_pl import LoRAClassifier, LoRAConfig
from lora_pl.encoder.loading import load_tokenizer
from lora_pl.errors import UserError
from lora_pl.formats.exporting import export_checkpoint
from lora_pl.formats.importing import ImportOptions, import_adapter, load_external
from lora_pl.formats.peft_folder import BIASES as PEFT_BIASES
from lora_pl.formats.sentences import Sentences
from lora_pl.formats.stock_model import read_logits
from lora_pl.lora import VARIANTS
from tests.encoder.test_architectures import WITH_HEAD
from tests.formats.conftest import TEXTS, moved, saved, texts_for
from tests.support import TINY_TERMS, assert_equal_to_rounding, rounding, tiny_config

peft = pytest.importorskip("peft")

OF_PEFT = {name: variant for name, variant in VARIANTS.items() if variant.peft_settings is not None}


def exported(model: LoRAClassifier, folder: Path) -> Path:
    """The model's folder, from which PEFT read the logits of `predict`."""
    texts, path = texts_for(model), folder / "peft"
    sentences = Sentences(texts, (), "the test")
    found = export_checkpoint(saved(model, folder), path, "peft", sentences=sentences)["peft"]
    assert found.reader == f"peft {peft.__version__}"
    assert found.largest_logit_change <= rounding(TINY_TERMS, scale=max(1.0, model.logits(texts).abs().max().item()))
    return path


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("roberta", {}),
        ("bert", {"task": "rte"}),
        ("bert", {"head": "architecture", "task": "mnli"}),
        ("xlm-roberta", {"lora": LoRAConfig(r=2, rank_pattern={"value": 3}, alpha_pattern={".*layer.1.*query": 5.0})}),
        ("distilbert", {"head": "architecture"}),
        ("electra", {"head": "architecture", "lora": LoRAConfig(target_modules=("dense", "key"))}),
        ("modernbert", {"head": "architecture"}),
        ("modernbert", {"head": "architecture", "lora": LoRAConfig(target_modules=("value", "mlp_up"))}),
        ("deberta-v2", {"head": "architecture"}),
        ("mpnet", {"lora": LoRAConfig(target_modules=("query", "mlp_down"))}),
        *(("roberta", {"lora": LoRAConfig(r=2, rank_pattern={"value": 3}, variant=variant)}) for variant in OF_PEFT),
        *(("roberta", {"lora": LoRAConfig(r=2, rank_pattern={"value": 3}, alpha_pattern={"query": 5.0}, variant=variant,
                                          scaling="rslora")}) for variant in OF_PEFT),
        ("modernbert", {"head": "architecture", "lora": LoRAConfig(r=2, scaling="rslora")}),
        *((kind, {"head": "architecture", "lora": LoRAConfig(2, 2.0, target_modules=group, layers=layers)})
          for kind, group, layers in (
              ("roberta", "all-linear", ()), ("roberta", "mlp", 1), ("roberta", "attention", ()), ("bert", "mlp", ()),
              ("modernbert", "all-linear", 0), ("distilbert", "all-linear", "1"), ("deberta-v2", "mlp", "0-1"))),
        ("bert", {"lora": LoRAConfig(2, 2.0, target_modules="all-linear", exclude=("key", r".*layer\.0.*output.*"))}),
        *((kind, {"head": "architecture", "lora": LoRAConfig(2, target_modules=("value", "mlp_up")),
                  "train_biases": "none" if kind == "modernbert" else "all", "train_norms": True})
          for kind in WITH_HEAD),
        *(("roberta", {"train_biases": biases, "train_norms": norms}) for biases, norms in (
            ("lora", False), ("lora", True), ("all", False), ("none", True))),
        *(("roberta", {"train_biases": "lora", "lora": LoRAConfig(2, variant=variant)}) for variant in OF_PEFT),
    ],
)  # fmt: skip
def test_peft_gives_the_logits_of_predict_head_included(kind, settings, make_model, tmp_path):
    model = make_model(kind, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a user sees none
        folder = exported(model, tmp_path)
    # and back, as the very model
    again = load_external(folder)
    assert again.hparams["head"] == model.hparams["head"]
    assert again.hparams["lora"]["scaling"] == model.hparams["lora"]["scaling"]
    assert all(again.hparams[name] == model.hparams[name] for name in ("train_biases", "train_norms"))
    assert again.label_names == model.label_names
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert torch.equal(again.logits(texts_for(model)), model.logits(texts_for(model)))


EVA = LoRAConfig(r=3, init="eva", eva_rho=2.0, target_modules=("query", "mlp_up", "mlp_down"))


@pytest.mark.parametrize("variant", OF_PEFT)
def test_ranks_of_eva_are_written_as_patterns(variant, make_model, tmp_path):
    """PEFT keeps the scale alpha / r where EVA changes ranks, as lora_pl does."""
    names = [f"encoder.layer.{i}.{name}" for i in (0, 1) for name in ("attention.self.query", "output.dense")]
    lora = replace(EVA, variant=variant).with_patterns_of(EVA.with_ranks(dict(zip(names, (1, 5, 3, 4), strict=True))))
    model = make_model("roberta", lora=replace(lora, lora_alpha=6.0))
    folder = exported(model, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["init_lora_weights"], config["eva_config"]) == ("eva", {"rho": 2.0})
    assert list(config["rank_pattern"].values()) == [1, 5, 4]
    card = (folder / "README.md").read_text()
    assert "| rank r | 3 (by layer: 1, 3, 4, 5) |" in card
    assert "| init of A | eva |" in card
    assert torch.equal(load_external(folder).logits(TEXTS), model.logits(TEXTS))


def test_rslora_is_written_with_the_alpha_that_was_given(make_model, tmp_path):
    model = make_model(lora=LoRAConfig(r=2, lora_alpha=7, scaling="rslora", rank_pattern={"value": 3}))
    folder = exported(model, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["lora_alpha"], config["alpha_pattern"]) == (True, 7, {})
    assert "| scaling | alpha / sqrt(r) (rslora) |" in (folder / "README.md").read_text()


def trained_by_peft(encoder, folder, labels=2, start=None, **settings):
    """A model that PEFT wrapped, moved a few steps by its own optimizer, and saved."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(5)
    base = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=labels, dtype=torch.float32)
    config = peft.LoraConfig(task_type="SEQ_CLS", **{"r": 3, "lora_alpha": 5, **settings})
    model = peft.get_peft_model(base, config)
    if start is not None:
        start(model)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0)
    tokenizer = load_tokenizer(encoder)
    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    for step in range(3):
        labels_of_step = (torch.arange(len(TEXTS)) + step) % labels
        nn.functional.cross_entropy(model(**batch).logits, labels_of_step).backward()
        optimizer.step()
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("roberta", {"target_modules": ["query", "value"]}),
        ("roberta", {"target_modules": ["query", "value"], "use_rslora": True, "lora_dropout": 0.1}),
        ("roberta", {"target_modules": "all-linear"}),
        ("bert", {"target_modules": ["query", "key"], "modules_to_save": ["pooler", "classifier"]}),
        ("roberta", {"target_modules": r".*\.(query|dense)", "exclude_modules": ["classifier.dense"]}),
        ("roberta", {"target_modules": ["query", "value"], "rank_pattern": {"value": 2},
                     "alpha_pattern": {r"layer\.1\.attention\.self\.query": 7}}),
        ("roberta", {"target_modules": ["query"], "rank_pattern": {r"layer\.0\..*": 2}, "use_rslora": True}),
        ("roberta", {"target_modules": ["query", "value"], "layers_to_transform": [1]}),
        ("distilbert", {"target_modules": ["q_lin"], "modules_to_save": ["pre_classifier", "classifier"]}),
        ("electra", {"target_modules": ["query", "value"]}),
        *(("roberta", {"target_modules": ["query", "dense"], "exclude_modules": r"classifier\..*", "bias": bias,
                       "modules_to_save": saved}) for bias in ("lora_only", "all") for saved in (None, ["LayerNorm"])),
        *(("bert", {"target_modules": "all-linear", "bias": bias}) for bias in ("lora_only", "all")),
        ("electra", {"target_modules": ["query"], "bias": "all", "modules_to_save": ["LayerNorm"]}),
        *(("roberta", {"target_modules": ["query"], "bias": "all", **variant.peft_settings})
          for variant in OF_PEFT.values()),
        *(("bert", {"target_modules": "all-linear", **variant.peft_settings}) for variant in OF_PEFT.values()),
        *(("roberta", {"target_modules": ["query", "value"], "rank_pattern": {"value": 2}, "use_rslora": True,
                       "alpha_pattern": {"query": 7}, **variant.peft_settings}) for variant in OF_PEFT.values()),
    ],
)  # fmt: skip
def test_an_adapter_that_peft_trained(kind, settings, tiny_encoder, tmp_path):
    theirs = trained_by_peft(tiny_encoder(kind), tmp_path / "theirs", labels=3, **settings)
    expected = read_logits(theirs, load_tokenizer(tiny_encoder(kind)), TEXTS)
    model = import_adapter(tmp_path / "theirs", tmp_path / "ours.ckpt", ImportOptions(encoder=tiny_encoder(kind)))
    assert_equal_to_rounding(model.logits(TEXTS), expected, TINY_TERMS)
    assert model.label_names == ["LABEL_0", "LABEL_1", "LABEL_2"]

    assert model.hparams["lora"]["scaling"] == ("rslora" if settings.get("use_rslora") else "standard")
    assert model.hparams["lora"]["lora_alpha"] in (5.0, *settings.get("alpha_pattern", {}).values())
    loaded = LoRAClassifier.load_from_checkpoint(tmp_path / "ours.ckpt")
    assert torch.equal(loaded.logits(TEXTS), model.logits(TEXTS))
    assert model.hparams["train_biases"] == PEFT_BIASES[settings.get("bias", "none")]
    assert model.hparams["train_norms"] == ("LayerNorm" in (settings.get("modules_to_save") or ()))


@pytest.fixture
def biased(tiny_encoder, tmp_path) -> str:
    """A ModernBERT with biases, its fused projection's too."""
    from transformers import AutoModel

    config = tiny_config(
        "modernbert", attention_bias=True, norm_bias=True, mlp_bias=True, classifier_bias=True, classifier_pooling="cls"
    )
    AutoModel.from_config(config).save_pretrained(tmp_path / "base")
    load_tokenizer(tiny_encoder("modernbert")).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.mark.parametrize("targets", ["query", ["key", "value"], "attention"])
@pytest.mark.parametrize("biases", ["lora", "all"])
def test_biases_of_a_fused_projection_go_to_peft_and_back(biases, targets, biased, tmp_path):
    """All parts' are trained where one is adapted, as PEFT trains the layer's."""
    settings = {"head": "architecture", "lora": LoRAConfig(2, target_modules=targets), "train_biases": biases}
    model = moved(LoRAClassifier(encoder=biased, **settings))
    again = load_external(exported(model, tmp_path))
    assert again.hparams["train_biases"] == biases
    state = model.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases_of_a_fused_projection_that_peft_trained(bias, biased, tmp_path):
    settings = {"target_modules": ["Wqkv", "Wi"], "modules_to_save": ["head", "classifier"], "bias": bias}
    theirs = trained_by_peft(biased, tmp_path / "theirs", **settings)
    model = load_external(tmp_path / "theirs")
    assert_equal_to_rounding(model.logits(TEXTS), read_logits(theirs, load_tokenizer(biased), TEXTS), TINY_TERMS)


def test_an_adapter_that_peft_started_by_eva(tiny_encoder, tmp_path):
    """With ranks of its own, layers without one, and its settings of EVA in the configuration."""
    tokenizer = load_tokenizer(tiny_encoder())
    batches = [tokenizer(list(TEXTS), padding=True, return_tensors="pt").data]

    def start(model) -> None:
        peft.initialize_lora_eva_weights(model, batches, show_progress_bar=False)

    settings = {"target_modules": ["query", "dense"], "exclude_modules": ["classifier.dense"], "r": 6}
    eva = {"init_lora_weights": "eva", "eva_config": peft.EvaConfig(rho=2.0)}
    theirs = trained_by_peft(tiny_encoder(), tmp_path, start=start, **settings, **eva)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"]
    assert config["eva_config"]["rho"] == 2.0
    model = load_external(tmp_path, ImportOptions(encoder=tiny_encoder()))
    assert_equal_to_rounding(model.logits(TEXTS), read_logits(theirs, tokenizer, TEXTS), TINY_TERMS)


@pytest.mark.parametrize("settings", [{"lora_bias": True}, {"init_lora_weights": "pissa"}])
def test_what_cannot_be_represented_is_refused_by_name(settings, tiny_encoder, tmp_path):
    trained_by_peft(tiny_encoder("roberta"), tmp_path / "theirs", target_modules=["query", "value"], **settings)
    with pytest.raises(UserError) as error:
        import_adapter(tmp_path / "theirs", tmp_path / "x.ckpt", ImportOptions(encoder=tiny_encoder()))
    assert error.value.key == "adapter.unsupported"
    assert all(f"{field} = {value}" in str(error.value) for field, value in settings.items())
    assert not (tmp_path / "x.ckpt").exists()


@pytest.mark.parametrize("lost", ["layer.1.attention.self.query.base_layer.bias", "embeddings.LayerNorm.weight"])
@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_a_trained_bias_or_norm_that_is_missing_is_named(bias, lost, tiny_encoder, tmp_path):
    settings = {"target_modules": ["query"], "bias": bias, "modules_to_save": ["LayerNorm"]}
    trained_by_peft(tiny_encoder("roberta"), tmp_path / "theirs", **settings)
    weights = tmp_path / "theirs" / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(weights).items() if not name.endswith(lost)}, weights)
    with pytest.raises(UserError) as error:
        load_external(tmp_path / "theirs", ImportOptions(encoder=tiny_encoder()))
    assert error.value.key == "adapter.missing"
    assert lost.replace(".base_layer", "") in str(error.value)


@pytest.mark.parametrize("blocks", [None, [1], 1])
def test_a_layer_whose_tensors_are_missing_is_named(blocks, tiny_encoder, tmp_path):
    targets = {"target_modules": ["query", "value"], "layers_to_transform": blocks}
    trained_by_peft(tiny_encoder("roberta"), tmp_path / "theirs", **targets)
    weights = tmp_path / "theirs" / "adapter_model.safetensors"
    lost = "layer.1.attention.self.query."
    save_file({name: t for name, t in load_file(weights).items() if lost not in name}, weights)
    with pytest.raises(UserError) as error:
        import_adapter(tmp_path / "theirs", tmp_path / "x.ckpt", ImportOptions(encoder=tiny_encoder()))
    assert error.value.key == "adapter.missing"
    assert "layer.1.attention.self.query" in str(error.value)


def test_a_head_that_was_not_saved_is_named(tiny_encoder, tmp_path):
    trained_by_peft(tiny_encoder("distilbert"), tmp_path / "theirs", target_modules=["q_lin"])
    weights = tmp_path / "theirs" / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(weights).items() if "pre_classifier" not in name}, weights)
    with pytest.raises(UserError) as error:
        load_external(tmp_path / "theirs", ImportOptions(encoder=tiny_encoder("distilbert")))
    assert error.value.key == "adapter.head"
    assert "pre_classifier.weight" in str(error.value)


def test_a_pooler_that_the_base_does_not_hold_is_named(tiny_encoder, tmp_path):
    from transformers import AutoModel

    trained_by_peft(tiny_encoder("bert"), tmp_path / "theirs", target_modules=["query"])
    bare = AutoModel.from_pretrained(tiny_encoder("bert"), add_pooling_layer=False)
    bare.save_pretrained(tmp_path / "bare")
    load_tokenizer(tiny_encoder("bert")).save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError) as error:
        load_external(tmp_path / "theirs", ImportOptions(encoder=str(tmp_path / "bare")))
    assert error.value.key == "adapter.base"
