"""What every row of FORMATS promises; a new row inherits all of it."""

import json
from pathlib import Path

import pytest
import torch

from lora_pl import LoRAClassifier, LoRAConfig
from lora_pl.encoder.dtype import DTYPES
from lora_pl.errors import UserError
from lora_pl.formats import FORMATS
from lora_pl.formats.export import Export, ExportOptions
from lora_pl.formats.exporting import export_checkpoint
from lora_pl.formats.model_card import RECORD
from lora_pl.formats.sentences import Sentences
from lora_pl.lora import VARIANTS
from lora_pl.lora.adapter import LoRA
from tests.formats.conftest import TEXTS, moved, saved
from tests.support import TINY_TERMS, assert_equal_to_rounding, rounding, tiny_config, tiny_tokenizer

SLOW = [name for name, export in FORMATS.items() if export.needed]
"""These have tools of their own, which take seconds: they write one variant, with trained biases and norms in it."""
CASES = [(name, variant) for name in FORMATS for variant in VARIANTS if name not in SLOW or variant == "lora"]
BOTH = {"train_biases": "all", "train_norms": True}
each_format = pytest.mark.parametrize("format", FORMATS)


def require(format: str, variant: str = "lora") -> None:
    for package in FORMATS[format].needed:
        pytest.importorskip(package)
    if format == "peft" and VARIANTS[variant].peft_settings is None:
        pytest.skip("PEFT does not have this variant")


def refused(key: str, output: Path, *given, **named) -> None:
    """Exporting fails, with nothing left behind and what was there unchanged."""
    before = {path: path.read_bytes() for path in output.parent.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as error:
        export_checkpoint(*given, output=output, **named)
    assert error.value.key == key
    assert {path: path.read_bytes() for path in output.parent.rglob("*") if path.is_file()} == before


def assert_usage_answers_as_predict(export: Export, folder: Path) -> None:
    """The last line of `usage` has the answer, which is logits or like `predict`'s."""
    lines, _, call = export.usage.replace("{folder}", str(folder)).rpartition("\n")
    exec(lines, names := {})
    answer = eval(call, names)
    if not isinstance(answer, dict):  # the pipeline's for one pair
        (answer,) = answer
    if not isinstance(answer, dict):
        (answer,) = export.model.task.predictions(torch.as_tensor(answer).reshape(1, -1))
    (expected,) = export.model.predict([export.example])
    assert answer["label"] == expected["label"]
    assert answer["score"] == pytest.approx(expected["score"], abs=rounding(TINY_TERMS))


@pytest.fixture
def path(make_model, tmp_path) -> Path:
    (tmp_path / "run").mkdir()
    return saved(make_model(), tmp_path / "run")


@pytest.mark.parametrize(("format", "variant"), CASES)
def test_logits_read_back_are_those_of_predict(format, variant, make_model, tmp_path, monkeypatch):
    require(format, variant)
    trained = BOTH if format in SLOW else {}
    model = make_model(lora=LoRAConfig(r=2, rank_pattern={"value": 3}, variant=variant), max_length=9, **trained)
    texts = (*TEXTS, "the film is good and the plot is bad but the cast was never very fine")  # cut where predict cuts
    output, sentences = tmp_path / "out", Sentences(texts, (1.0,) * len(texts), "the test")
    found = export_checkpoint(saved(model, tmp_path), output, format, sentences=sentences)[format]
    export, expected = FORMATS[format](model), model.logits(texts)
    assert_equal_to_rounding(export.logits(output, texts), expected, TINY_TERMS)
    assert (found.sentences, found.source, found.flipped) == (len(texts), "the test", 0)
    assert found.reader.startswith(export.program)
    assert found.metrics == found.exported_metrics
    card, record = (output / "README.md").read_text(), json.loads((output / "lora_pl.json").read_text())
    base = model.base.fingerprints
    assert (record["format"], record["base"]) == (format, {**base, "encoder": Path(base["encoder"]).name})
    assert record["comparisons"][format]["flipped"] == 0
    assert f"--format {format}" in card
    assert f"library_name: {export.program}\n" in card
    assert f"| variant | {variant} |\n| rank r | 2 (by layer: 2, 3) |" in card
    assert export.usage.replace("{folder}", "THIS_FOLDER") in card
    monkeypatch.chdir(Path(base["encoder"]).parent)  # where PEFT's base is found by its name
    assert_usage_answers_as_predict(export, output)
    monkeypatch.setattr(FORMATS[format], "example", texts[-1])  # cut there too
    assert_usage_answers_as_predict(export, output)
    assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "out"}


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in SLOW])
@pytest.mark.parametrize("settings", [{"train_biases": "lora"}, BOTH])
def test_trained_biases_and_norms_are_in_it(settings, format, make_model, tmp_path):
    require(format)
    model = make_model(**settings)
    export_checkpoint(saved(model, tmp_path), tmp_path / "out", format, sentences=8)
    expected = model.logits(TEXTS)
    assert_equal_to_rounding(FORMATS[format](model).logits(tmp_path / "out", TEXTS), expected, TINY_TERMS)
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("| trained biases | all |" in card, "| trained norms | all |" in card) == (settings == BOTH,) * 2
    before = make_model().logits(TEXTS)
    assert not torch.allclose(before, expected, atol=1e-3)


@each_format
def test_an_output_that_is_taken_or_nowhere(format, path, tmp_path):
    require(format)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    refused("export.taken", tmp_path / "file", path, format=format)
    refused("export.taken", tmp_path / "full", path, format=format)
    refused("export.parent", tmp_path / "none" / "out", path, format=format)


@each_format
def test_options_that_a_format_does_not_have(format, path, tmp_path):
    require(format)
    for dtype in DTYPES.keys() - FORMATS[format].relative_tolerances.keys():
        refused("export.dtype", tmp_path / "out", path, format=format, options=ExportOptions(dtype))
    if not FORMATS[format].has_int8:
        refused("export.flags", tmp_path / "out", path, format=format, options=ExportOptions(int8=True))


@pytest.mark.parametrize("format", SLOW)
def test_without_its_packages_it_says_what_to_install(format, path, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_pl.formats.export.find_spec", lambda name: None)
    refused("export.format", tmp_path / "out", path, format=format)


@each_format
@pytest.mark.parametrize("change", [1e-3, float("nan")])
def test_past_the_tolerance_it_fails(format, change, path, tmp_path, monkeypatch):
    require(format)
    monkeypatch.setattr(FORMATS[format], "write", lambda self, folder: None)
    monkeypatch.setattr(FORMATS[format], "logits", lambda self, folder, texts: self.model.logits(texts) + change)
    refused("export.differs", tmp_path / "out", path, format=format, sentences=8)


@each_format
def test_a_full_disk_leaves_nothing_and_an_earlier_export_whole(format, path, tmp_path, monkeypatch):
    require(format)

    def fill(self, folder: Path) -> None:
        (folder / "weights").write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "weights").write_bytes(b"all of it")
    (tmp_path / "earlier" / RECORD).touch()
    monkeypatch.setattr(FORMATS[format], "write", fill)
    for output in ("new", "earlier"):
        refused("export.disk", tmp_path / output, path, format=format, overwrite=True)


@each_format
def test_a_folder_that_is_there_is_replaced_on_demand(format, path, tmp_path, monkeypatch):
    require(format)
    monkeypatch.setattr(FORMATS[format], "write", lambda self, folder: None)
    monkeypatch.setattr(FORMATS[format], "logits", lambda self, folder, texts: self.model.logits(texts))
    (tmp_path / "out").mkdir()
    export_checkpoint(path, tmp_path / "out", format, sentences=8)  # an empty one may be filled
    (tmp_path / "out" / "stale").touch()
    export_checkpoint(path, tmp_path / "out", format, sentences=8, overwrite=True)
    assert not (tmp_path / "out" / "stale").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}


def test_a_variant_that_peft_does_not_have(make_model, tmp_path, monkeypatch):
    class Unknown(LoRA):
        peft_settings = None

    monkeypatch.setitem(VARIANTS, "unknown", Unknown)
    model = make_model(lora=LoRAConfig(variant="unknown"))
    path = saved(model, tmp_path)
    refused("export.format", tmp_path / "out", path, format="peft")
    export_checkpoint(path, tmp_path / "adapter", "adapter", sentences=8)
    again = FORMATS["adapter"](model).logits(tmp_path / "adapter", TEXTS)
    assert torch.equal(again, model.logits(TEXTS))


@each_format
def test_pairs_for_an_encoder_whose_tokenizer_gives_types_that_it_lacks(format, tmp_path, monkeypatch):
    """As MiniLM has them: BERT's tokenizer with RoBERTa's encoder."""
    from transformers import AutoModel

    require(format)
    AutoModel.from_config(tiny_config("roberta", num_hidden_layers=1)).save_pretrained(tmp_path / "base")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "base")
    model = moved(LoRAClassifier(encoder=str(tmp_path / "base"), pairs=True))
    found = export_checkpoint(saved(model, tmp_path), tmp_path / "out", format, sentences=4)[format]
    assert found.flipped == 0
    monkeypatch.chdir(tmp_path)  # where PEFT's base is found by its name
    assert_usage_answers_as_predict(FORMATS[format](model), tmp_path / "out")
