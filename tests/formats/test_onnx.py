"""Against the real ONNX Runtime; RoBERTa is in test_formats.py, BERT in test_round_trips.py."""

from pathlib import Path

import pytest
import torch

from lora_pl.formats.comparison import Comparison
from lora_pl.formats.export import ExportOptions
from lora_pl.formats.exporting import export_checkpoint
from lora_pl.formats.onnx import OnnxExport
from lora_pl.formats.sentences import Sentences
from tests.formats.conftest import saved, texts_for
from tests.support import TINY_TERMS, assert_equal_to_rounding

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize(
    ("kind", "settings", "int8"),
    [
        ("distilbert", {}, True),  # a linear head, which no stock folder of this architecture can hold
        ("modernbert", {"task": "stsb"}, False),
        pytest.param("electra", {}, False, marks=pytest.mark.attack),  # an export takes seconds
    ],
)
def test_onnxruntime_gives_labels_and_logits_for_any_batch_and_length(kind, settings, int8, make_model, tmp_path):
    model = make_model(kind, **settings)
    texts = texts_for(model)
    options, sentences = ExportOptions(int8=int8), Sentences(texts, (1.0,) * len(texts), "the test")
    found = export_checkpoint(saved(model, tmp_path), tmp_path / "onnx", "onnx", options, sentences=sentences)
    assert found["onnx"].flipped == 0
    if int8:
        assert_int8_is_measured_beside_it(found, tmp_path / "onnx")
    assert b"/torch/" not in (tmp_path / "onnx" / "model.onnx").read_bytes()  # no path of this machine
    export, expected = OnnxExport(model, ExportOptions()), model.logits(texts)
    for part in (slice(0, 1), slice(1, 3), slice(0, 5)):
        got = export.logits(tmp_path / "onnx", texts[part])
        assert_equal_to_rounding(got, expected[part], TINY_TERMS)
        if len(model.label_names) > 1:
            assert torch.equal(got.argmax(-1), expected[part].argmax(-1))


def assert_int8_is_measured_beside_it(found: dict[str, Comparison], folder: Path) -> None:
    assert 10 * found["onnx"].largest_logit_change < found["model.int8.onnx"].largest_logit_change < 1
    assert "accuracy" in found["model.int8.onnx"].exported_metrics
    assert "(reported, no tolerance)" in str(found["model.int8.onnx"])
    assert (folder / "model.int8.onnx").stat().st_size < (folder / "model.onnx").stat().st_size
    assert "model.int8.onnx: largest logit change" in (folder / "README.md").read_text()
