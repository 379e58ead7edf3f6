import json
import subprocess
import sys

import pytest
import torch

from lora_pl.encoder.loading import load_config
from lora_pl.errors import UserError
from lora_pl.formats.export import ExportOptions
from lora_pl.formats.exporting import export_checkpoint
from lora_pl.formats.sentences import Sentences
from lora_pl.formats.stock_model import stock_class
from tests.formats.conftest import saved, texts_for

# by a process that never imports lora_pl
PIPELINE = """
import json, sys
from transformers import pipeline
folder, texts = sys.argv[1], json.loads(sys.argv[2])
texts = [t if isinstance(t, str) else {"text": t[0], "text_pair": t[1]} for t in texts]
classify = pipeline("text-classification", model=folder, truncation=True)
rows = classify(texts, top_k=None, function_to_apply="none", batch_size=2)
assert "lora_pl" not in sys.modules
print(json.dumps([{row["label"]: row["score"] for row in answer} for answer in rows]))
"""

MATRIX = [
    (kind, head, dtype, task)
    for kind in ("roberta", "xlm-roberta", "bert")
    for head in ("linear", "architecture")
    for dtype in ("float32", "bfloat16")
    for task in ("sst2", "rte")
]


def by_pipeline(folder, texts):
    arguments = [sys.executable, "-c", PIPELINE, str(folder), json.dumps(texts)]
    return json.loads(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(("kind", "head", "dtype", "task"), MATRIX[:: len(MATRIX) // 6 - 1])
def test_the_pipeline_gives_labels_and_logits_of_predict(kind, head, dtype, task, make_model, tmp_path):
    """A sample of the matrix; the whole of it runs in one process below."""
    model = make_model(kind, head=head, task=task)
    texts = texts_for(model)
    export_checkpoint(saved(model, tmp_path), tmp_path / "hf", "hf", ExportOptions(dtype))
    rows = by_pipeline(tmp_path / "hf", texts)
    assert all(set(row) == set(model.label_names) for row in rows)
    got = torch.tensor([[row[name] for name in model.label_names] for row in rows])
    expected = model.logits(texts)
    tolerance = 1e-5 if dtype == "float32" else 5e-2
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))
    if dtype == "float32":
        labels = [prediction["label"] for prediction in model.predict(list(texts))]
        assert [max(row, key=row.__getitem__) for row in rows] == labels


@pytest.mark.parametrize(("kind", "head", "dtype", "task"), MATRIX)
def test_every_export_is_compared_before_it_counts(kind, head, dtype, task, make_model, tmp_path):
    model = make_model(kind, head=head, task=task)
    sentences = Sentences(texts_for(model), (), "the test")
    path = saved(model, tmp_path)
    found = export_checkpoint(path, tmp_path / "hf", "hf", ExportOptions(dtype), sentences=sentences)["hf"]
    assert found.sentences == len(sentences.texts)
    assert found.largest_logit_change <= found.tolerance
    if dtype == "float32":
        assert found.largest_logit_change < 1e-5 * max(1.0, model.logits(sentences.texts).abs().max().item())


@pytest.mark.parametrize(("kind", "head"), [("distilbert", "architecture"), ("electra", "architecture")])
def test_other_architectures_keep_their_own_head(kind, head, make_model, tmp_path):
    model = make_model(kind, head=head, task="mnli")
    export_checkpoint(saved(model, tmp_path), tmp_path / "hf")
    config = load_config(str(tmp_path / "hf"))
    assert list(config.id2label.values()) == model.label_names


def test_no_slower_than_the_base_because_it_is_built_alike(make_model, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = make_model()
    export_checkpoint(saved(model, tmp_path), tmp_path / "hf")
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")
    base = stock_class(exported.config).from_pretrained(model.hparams["encoder"])
    assert [type(module) for module in exported.modules()] == [type(module) for module in base.modules()]
    assert exported.num_parameters() == base.num_parameters()


def test_regression_head_and_full_fine_tuning(make_model, tmp_path):
    for index, settings in enumerate(({"task": "stsb"}, {"method": "full"}, {"method": "head"})):
        model = make_model(**settings)
        (tmp_path / str(index)).mkdir()
        path = saved(model, tmp_path / str(index))
        found = export_checkpoint(path, tmp_path / str(index) / "hf", sentences=16)["hf"]
        assert found.largest_logit_change < 1e-5
        assert found.flipped == 0


def test_a_head_that_the_architecture_cannot_hold_is_refused(make_model, tmp_path):
    for format in ("hf", "peft"):
        with pytest.raises(UserError, match="relu.*export --format onnx or adapter"):
            export_checkpoint(saved(make_model("distilbert"), tmp_path), tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_long_texts_are_cut_where_predict_cuts(make_model, tmp_path):
    model = make_model(max_length=8)
    export_checkpoint(saved(model, tmp_path), tmp_path / "hf")
    long = ["the film is good and the plot is bad but the cast was never very fine"]
    (row,) = by_pipeline(tmp_path / "hf", long)
    got = torch.tensor([[row[name] for name in model.label_names]])
    torch.testing.assert_close(got, model.logits(long), rtol=0, atol=1e-5)
