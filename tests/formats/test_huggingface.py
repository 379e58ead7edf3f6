import pytest
import torch

from lora_pl import LoRAClassifier
from lora_pl.encoder.architectures import ARCHITECTURES
from lora_pl.encoder.loading import load_config
from lora_pl.errors import UserError
from lora_pl.formats.exporting import export_checkpoint
from lora_pl.formats.sentences import Sentences
from lora_pl.formats.stock_model import stock_class
from tests.encoder.test_architectures import WITH_HEAD
from tests.formats.conftest import saved, texts_for
from tests.support import TINY_TERMS, rounding


@pytest.mark.parametrize("kind", WITH_HEAD)
def test_every_architectures_own_head_is_exact_in_its_own_class(kind, make_model, tmp_path):
    model = make_model(kind, head="architecture", task="mnli")
    texts = texts_for(model)
    export_checkpoint(saved(model, tmp_path), tmp_path / "hf", sentences=Sentences(texts, (), "the test"))
    config = load_config(str(tmp_path / "hf"))
    assert list(config.id2label.values()) == model.label_names


@pytest.mark.parametrize("kind", [kind for kind in WITH_HEAD if ARCHITECTURES[kind].head.can_be_linear])
def test_a_linear_head_is_exact_in_a_stock_class(kind, make_model, tmp_path):
    model = make_model(kind)
    texts = texts_for(model)
    export_checkpoint(saved(model, tmp_path), tmp_path / "hf", sentences=Sentences(texts, (), "the test"))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_fused_layers_are_written_as_transformers_has_them(method, make_model, tmp_path):
    model = make_model("modernbert", head="architecture", method=method)
    path = saved(model, tmp_path)
    export_checkpoint(path, tmp_path / "hf", sentences=Sentences(texts_for(model), (), "the test"))
    again = LoRAClassifier.load_from_checkpoint(path)
    assert torch.equal(again.logits(texts_for(model)), model.logits(texts_for(model)))


def test_no_slower_than_the_base_because_it_is_built_alike(make_model, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = make_model()
    export_checkpoint(saved(model, tmp_path), tmp_path / "hf", sentences=8)
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")
    base = stock_class(exported.config).from_pretrained(model.hparams["encoder"])
    assert [type(module) for module in exported.modules()] == [type(module) for module in base.modules()]
    assert exported.num_parameters() == base.num_parameters()


@pytest.mark.parametrize("names", [["a", "b", "c"], ["a"]])
def test_the_pipeline_gives_each_labels_own_probability(names, make_model, tmp_path):
    from transformers import pipeline

    model = make_model(task="multilabel", label_names=names)
    export_checkpoint(saved(model, tmp_path), tmp_path / "hf", sentences=Sentences(texts_for(model), (), "the test"))
    assert "top_k=None" in (tmp_path / "hf" / "README.md").read_text()
    rows = pipeline("text-classification", model=str(tmp_path / "hf"), top_k=None)(list(texts_for(model)))
    for row, answer in zip(rows, model.predict(texts_for(model)), strict=True):
        assert {each["label"]: each["score"] for each in row} == pytest.approx(answer["probabilities"], abs=1e-5)


def test_regression_head_and_full_fine_tuning(make_model, tmp_path):
    for index, settings in enumerate(({"task": "stsb"}, {"method": "full"}, {"method": "head"})):
        model = make_model(**settings)
        (tmp_path / str(index)).mkdir()
        path = saved(model, tmp_path / str(index))
        found = export_checkpoint(path, tmp_path / str(index) / "hf", sentences=16)["hf"]
        assert found.largest_logit_change < rounding(TINY_TERMS, scale=5)
        assert found.flipped == 0
        title = next(line for line in (tmp_path / str(index) / "hf" / "README.md").open() if line.startswith("# "))
        assert ("LoRA merged" in title) == (model.hparams["method"] == "lora")


def test_a_head_that_the_architecture_cannot_hold_is_refused(make_model, tmp_path):
    for format in ("hf", "peft"):
        with pytest.raises(UserError) as error:
            export_checkpoint(saved(make_model("distilbert"), tmp_path), tmp_path / "out", format)
        assert error.value.key == "model.head"
    assert not (tmp_path / "out").exists()
