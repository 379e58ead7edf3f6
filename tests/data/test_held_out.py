from collections import Counter

import pytest

from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.errors import UserError

TEXTS = [f"the film is good {number}" for number in range(30)] + [f"the film is bad {number}" for number in range(20)]
COPIES = TEXTS[:5]


@pytest.fixture
def own(tmp_path, tiny_encoder):
    """Data of a file of 55 sentences, 5 of them twice."""
    file = tmp_path / "mine.csv"
    rows = [f"{text},{'happy' if 'good' in text else 'sad'}" for text in TEXTS + COPIES]
    file.write_text("\n".join(["text,label", *rows]) + "\n")

    def make(**given) -> SentenceDataModule:
        return SentenceDataModule(**{"train_file": str(file), "encoder": tiny_encoder(), **given})

    return make


def parts(data: SentenceDataModule) -> tuple[list[str], list[str]]:
    train, validation = data.read("train"), data.read("validation")
    assert [train.labels.count(1), validation.labels.count(1)] == [
        sum("bad" in text for text in part.texts[0]) for part in (train, validation)
    ]
    return train.texts[0], validation.texts[0]


def test_a_share_is_drawn_by_label_and_seed(own):
    train, validation = parts(own(validation_share=0.2, seed=1))
    assert Counter(train + validation) == Counter(TEXTS + COPIES)
    assert not set(train) & set(validation)
    assert len(set(validation)) == 10
    assert sum("bad" in text for text in set(validation)) == 4
    assert parts(own(validation_share=0.2, seed=1)) == (train, validation)
    assert parts(own(validation_share=0.2, seed=2)) != (train, validation)


def test_folds_are_a_partition_by_label(own):
    folds = [parts(own(folds=4, fold=fold)) for fold in range(4)]
    assert Counter(text for _, validation in folds for text in validation) == Counter(TEXTS + COPIES)
    for train, validation in folds:
        assert not set(train) & set(validation)
        assert sum("bad" in text for text in set(validation)) == 5


def test_scores_are_drawn_at_random(own, tmp_path):
    scores = tmp_path / "scores.csv"
    scores.write_text("text,label\n" + "".join(f"the film {n},{n / 10}\n" for n in range(40)))
    data = own(task="stsb", text_column="text", train_file=str(scores), validation_share=0.25)
    train, validation = data.read("train"), data.read("validation")
    assert len(validation) == 10
    assert sorted(train.labels + validation.labels) == [n / 10 for n in range(40)]
    assert max(validation.labels) > 1


def test_a_sample_of_the_rest_is_trained_on(own, capsys):
    data = own(validation_share=0.2, train_sentences=10, train_draw="stratified")
    data.setup("fit")
    assert len(data.train_dataloader().dataset) == 10
    assert sorted(Counter(data._tokens["train"].labels.tolist()).values()) == [4, 6]
    rest = own(validation_share=0.2)
    rest.setup("fit")
    assert data.fingerprints()["validation"] == rest.fingerprints()["validation"]
    said = " ".join(capsys.readouterr().err.split())
    assert "(20% of the training split, drawn by seed 0)" in said
    assert "10 of them are used, chosen by label and seed 0" in said


def test_a_source_without_a_file_has_them_too(tiny_encoder, glue_folder):
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), folds=3, fold=2)
    assert sorted([*data.read("train").texts[0], *data.read("validation").texts[0]]) == sorted(
        SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder()).read("train").texts[0]
    )


def test_a_class_without_a_sentence_is_said(own, tmp_path, capsys):
    rare = tmp_path / "rare.csv"
    rare.write_text("text,label\n" + "".join(f"the film {n},{'common' if n else 'rare'}\n" for n in range(12)))
    own(train_file=str(rare), folds=4, fold=0).setup("validate")
    assert "no sentence of rare" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "key"),
    [
        *(({"validation_share": share}, "validation_share") for share in (0.0, 1.0, 0.01, 0.99)),
        ({"validation_share": 0.1, "validation_file": "x.csv"}, "validation_share"),
        ({"validation_share": 0.1, "folds": 3, "fold": 0}, "folds"),
        ({"fold": 1}, "folds"),
        ({"folds": 1, "fold": 0}, "folds"),
        ({"folds": 51, "fold": 0}, "folds"),
        *(({"folds": 3, "fold": fold}, "fold") for fold in (None, -1, 3)),
        ({}, "validation_file"),
        ({"label_names": ["sad", " "]}, "label_names"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_can_not_be_held_out(given, key, own):
    with pytest.raises(UserError, match=f"^data.{key}: "):
        own(**given).read("validation")
