import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lora_pl import LoRAClassifier, SentenceDataModule
from lora_pl.callbacks.error_list import ErrorList
from lora_pl.cli.main import main
from lora_pl.data.rows import read_rows
from lora_pl.errors import UserError
from lora_pl.predictions.writers import WRITERS, write_rows
from tests.model.test_classifier import trainer


def validate(model: LoRAClassifier, data: SentenceDataModule, path: str) -> None:
    trainer(Path(), callbacks=[ErrorList(path, data)]).validate(model, data, verbose=False)


def listed(data: SentenceDataModule, path: str = "errors.jsonl") -> list[dict]:
    validate(LoRAClassifier.for_data(data), data, path)
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_errors_are_those_of_predict_most_confident_first(checkpoint, glue_folder, capsys):
    wrong = Path("dev.csv")
    texts = [text for _, (text,) in read_rows(glue_folder / "dev.tsv", ["sentence"])]
    wrong.write_text("sentence,label\n" + "".join(f"{text},{number % 2}\n" for number, text in enumerate(texts)))
    own = ["--ckpt_path", str(checkpoint), "--data.validation_file", str(wrong), "--trainer.precision", "32-true"]
    assert main(["validate", *own, "--errors", "errors.jsonl", "--data.eval_batch_tokens", "64"]) == 0
    rows = [json.loads(line) for line in Path("errors.jsonl").read_text().splitlines()]
    assert f"{len(rows)} of 48 sentences in errors.jsonl" in capsys.readouterr().err
    answers = LoRAClassifier.load_from_checkpoint(checkpoint).predict(texts)
    labels = [("negative", "positive")[number % 2] for number in range(len(texts))]
    expected = {text: (label, answer["label"]) for text, label, answer in zip(texts, labels, answers, strict=True)
                if label != answer["label"]}  # fmt: skip
    assert 0 < len(rows) < 48
    assert {row["text"]: (row["label"], row["prediction"]) for row in rows} == expected
    assert all(texts[row["row"] - 1] == row["text"] for row in rows)
    chances = [row["probability"] for row in rows]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] == pytest.approx(max(a["score"] for t, a in zip(texts, answers, strict=True) if t in expected))


@pytest.mark.parametrize("rows", [[], [{"text": "a, b", "label": "x"}, {"text": "c", "label": "y"}]])
def test_every_format_has_the_rows(rows):
    for ending in WRITERS:
        write_rows(f"errors{ending}", rows)
    assert [json.loads(line) for line in Path("errors.jsonl").read_text().splitlines()] == rows
    assert pq.read_table("errors.parquet").to_pylist() == rows
    if rows:
        read = [cells for _, cells in read_rows("errors.csv", ["text", "label"])]
        assert read == [tuple(row.values()) for row in rows]
    assert {path.name for path in Path().iterdir()} == {f"errors{ending}" for ending in WRITERS}


def test_without_errors_a_table_has_its_columns(tiny_encoder):
    Path("mine.csv").write_text("text,label\ngood,a\nbad,a\n")
    files = {"train_file": "mine.csv", "validation_file": "mine.csv", "label_names": ["a", "b"]}
    data = SentenceDataModule(**files, encoder=tiny_encoder())
    model, read = LoRAClassifier.for_data(data), []
    for bias in (100.0, -100.0):
        model.head.bias.data[0] = bias
        for name in ("errors.csv", "errors.parquet"):
            validate(model, data, name)
        read.append((Path("errors.csv").read_text().splitlines(), pq.read_schema("errors.parquet")))
    (none, schema), (both, same) = read
    assert none == both[:1] == ["row,text,label,prediction,probability"]
    assert len(both) == 3
    assert schema == same


def test_lists_may_all_be_empty():
    write_rows("errors.parquet", [{"text": "a", "label": []}])
    assert str(pq.read_schema("errors.parquet").field("label").type.value_type) == "string"


def test_scores_go_by_their_difference(tiny_encoder):
    Path("mine.csv").write_text("text,label\ngood,5\nbad,0.5\nslow,-7\n")
    rows = listed(SentenceDataModule(task="stsb", text_column="text", validation_file="mine.csv", train_file="mine.csv",
                                     encoder=tiny_encoder()))  # fmt: skip
    assert [(row["row"], row["text"]) for row in rows] == [(3, "slow"), (1, "good"), (2, "bad")]
    assert all(row["difference"] == abs(row["prediction"] - row["label"]) for row in rows)


def test_pairs_of_two_splits_say_which(tiny_encoder, tmp_path):
    from tests.data.test_glue_files import LAYOUTS

    header, *lines = LAYOUTS["mnli"][0]
    for name, label in (("dev_matched.tsv", "neutral"), ("dev_mismatched.tsv", "contradiction")):
        (tmp_path / name).write_text("\n".join([header, *(line.rpartition("\t")[0] + f"\t{label}" for line in lines)]))
    rows = listed(SentenceDataModule(task="mnli", source=str(tmp_path), encoder=tiny_encoder()))
    assert {row["split"] for row in rows} <= {"validation_matched", "validation_mismatched"}
    assert {row["label"] for row in rows if row["split"] == "validation_matched"} <= {"neutral"}
    assert len(rows) >= 2  # one of the two labels is wrong for each
    assert {(row["text"], row["text_pair"]) for row in rows} <= {("a", "b"), ("c", "d")}


def test_what_is_read_is_not_overwritten(tmp_path):
    own = SentenceDataModule(source=str(tmp_path))
    Path("mine.csv").write_text("text,label\ngood,1\nbad,0\n")
    Path(tmp_path / "notes.csv").touch()
    file = SentenceDataModule(train_file="mine.csv", validation_share=0.5)
    for path, data in (("mine.csv", file), (f"{tmp_path}/notes.csv", own), ("x.tsv", own), ("/dev/null", own)):
        with pytest.raises(UserError, match="^errors: "):
            ErrorList(path, data)
