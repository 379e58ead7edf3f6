import json
import math
import re
from pathlib import Path

import pytest
import torch

from lora_pl import LoRAClassifier, SentenceDataModule
from lora_pl.callbacks.evaluation_report import EvaluationReport, _number, _table
from lora_pl.errors import UserError
from lora_pl.model.class_scores import ConfusionScores
from tests.model.test_classifier import trainer
from tests.support import run_in_process


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_a_table_and_a_file_of_every_class(verb, checkpoint, tmp_path):
    done = run_in_process([verb, "--ckpt_path", str(checkpoint), "--metrics", "m.json"], tmp_path, check=True)
    for part in ("negative", "positive", "macro", "support", "recall"):
        assert part in done.stdout
    assert re.search(r"^validation  loss \d\.\d{4}  accuracy \d\.\d{4}$", done.stdout, re.MULTILINE)
    assert "DataLoader" not in done.stdout, "Lightning's own table"
    told = json.loads((tmp_path / "m.json").read_text())
    assert (told["checkpoint"], told["task"], told["verb"]) == (str(checkpoint), "sst2", verb)
    found = told["splits"]["validation"]
    (tn, fp), (fn, tp) = found["confusion"]
    assert tn + fp + fn + tp == 48
    assert found["accuracy"] == pytest.approx((tn + tp) / 48)
    assert [row["label"] for row in found["classes"]] == ["negative", "positive"]
    assert [row["support"] for row in found["classes"]] == [tn + fp, fn + tp]
    assert found["classes"][1]["recall"] == pytest.approx(tp / (fn + tp))
    assert found["macro"]["f1"] == pytest.approx(sum(row["f1"] for row in found["classes"]) / 2)


def test_splits_have_the_names_that_the_data_give_them(tiny_encoder, tmp_path, capsys):
    """MNLI's own are validation_matched and validation_mismatched."""
    rows = "\n".join(f"a film,the plot,{label}" for label in ("entailment", "neutral", "contradiction"))
    Path("own.csv").write_text(f"sentence1,sentence2,label\n{rows}\n")
    own = {"train_file": "own.csv", "validation_file": "own.csv", "label_column": "label"}
    pair = {"text_column": "sentence1", "text_pair_column": "sentence2"}
    data = SentenceDataModule(task="mnli", encoder=tiny_encoder(), **own, **pair)
    trainer(tmp_path, callbacks=[EvaluationReport("m.json")]).validate(LoRAClassifier.for_data(data), data)
    assert [*json.loads(Path("m.json").read_text())["splits"]] == data.validation_splits == ["validation"]
    assert "matched" not in capsys.readouterr().out


def test_a_checkpoint_that_is_given_as_a_path_is_named(checkpoint, glue_folder, tmp_path):
    model = LoRAClassifier.load_from_checkpoint(checkpoint)
    data = SentenceDataModule(source=str(glue_folder), encoder=model.hparams["encoder"])
    trainer(tmp_path, callbacks=[EvaluationReport("m.json")]).validate(model, data, ckpt_path=checkpoint)
    assert json.loads(Path("m.json").read_text())["checkpoint"] == str(checkpoint)


@pytest.mark.parametrize(("classes", "rows"), [(50, 51), (51, 1)])
def test_of_many_classes_the_table_has_the_means(classes, rows):
    scores = ConfusionScores(torch.eye(classes, dtype=torch.long))
    assert _table(tuple(map(str, range(classes))), scores).row_count == rows


def test_what_is_no_number_is_null():
    assert [_number(value) for value in (math.nan, math.inf, 0.5)] == [None, None, 0.5]


def test_a_folder_is_refused_before_anything_is_computed():
    Path("logs").mkdir()
    with pytest.raises(UserError, match=r"logs is a folder; expected a file, such as logs/metrics\.json") as error:
        EvaluationReport("logs")
    assert error.value.key == "metrics"
