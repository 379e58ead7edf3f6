"""Folders in the hub's layout, which `datasets` reads as it reads those of the hub."""

import pytest

from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.errors import UserError

NAMES = ["neg", "pos"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def parquet(tmp_path):
    """data/SPLIT-00000-of-00001.parquet, with a `ClassLabel` as label."""
    from datasets import ClassLabel, Dataset, Features, Value

    def write(splits: dict[str, list[int]], names=NAMES):
        features = Features({"review": Value("string"), "stars": ClassLabel(names=names)})
        for split, labels in splits.items():
            texts = [f"the {split} film {number}" for number in range(len(labels))]
            made = Dataset.from_dict({"review": texts, "stars": labels}, features=features)
            made.to_parquet(tmp_path / "films" / "data" / f"{split}-00000-of-00001.parquet")
        return f"hub:{tmp_path / 'films'}"

    return write


@pytest.fixture
def described(tmp_path) -> str:
    """CSV files that a README.md assigns to configurations and splits."""
    folder = tmp_path / "described"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- {config_name: plain, data_files: [{split: train, path: a.csv}, {split: validation, path: b.csv}]}\n"
        "- {config_name: bare, data_files: [{split: train, path: a.csv}]}\n---\n"
    )
    (folder / "a.csv").write_text("text,label\nfine,1\ndull,0\nbright,1\nslow,0\n")
    (folder / "b.csv").write_text("text,label\ngood,1\n")
    return f"hub:{folder}"


def of(source: str, **given) -> SentenceDataModule:
    return SentenceDataModule(source=source, **given)


def test_class_labels_name_the_classes_and_test_stands_for_validation(parquet, tiny_encoder, capsys):
    columns = {"text_column": "review", "label_column": "stars", "encoder": tiny_encoder()}
    source = parquet({"train": [1, 0, 1], "test": [0, 1]})
    data = of(source, **columns)
    assert (data.task.name, data.label_names, data.validation_splits) == ("custom", NAMES, ["validation"])
    assert data.read("train").texts == ([f"the train film {number}" for number in range(3)],)
    data.setup("fit")
    assert data._tokens["validation"].labels.tolist() == [0, 1]
    assert f"the test split of {source}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("given", "labels"),
    [(["bad", "good"], [1, 0, 1]), (["pos", "neg"], [0, 1, 0]), (["pos", "fair", "neg"], [0, 2, 0])],
)
def test_class_labels_are_read_by_name_unless_they_are_renamed(given, labels, parquet):
    source = parquet({"train": [1, 0, 1]})
    data = of(source, text_column="review", label_column="stars", label_names=given)
    assert data.read("train").labels == labels


def test_ids_are_no_names_where_names_are_numbers(parquet):
    data = of(parquet({"train": [0, 1], "test": [1]}, ["1", "2"]), text_column="review", label_column="stars")
    assert data.read("train").labels == [0, 1]


def test_configurations_of_a_readme(described):
    data = of(f"{described}:plain")
    assert data.label_names == ["0", "1"]
    assert data.read("validation").texts == (["good"],)
    share = of(f"{described}:bare", validation_share=0.5)
    assert sorted(share.read("train").texts[0] + share.read("validation").texts[0]) == [
        "bright", "dull", "fine", "slow"
    ]  # fmt: skip


def test_a_checkpoint_has_the_folder_wherever_it_is_read(described, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert of("hub:described:plain").hparams["source"] == f"{described}:plain"
    assert of("hub:somebody/films").hparams["source"] == "hub:somebody/films"


def test_what_can_not_be_read(described, parquet, tmp_path):
    unlabelled = parquet({"train": [0, 1], "test": [-1, -1]})
    columns = {"text_column": "review", "label_column": "stars"}
    for source, given, split, key, said in (
        (described, {}, "train", "source", "'plain', 'bare'"),
        (f"{described}:palin", {}, "train", "source", "'plain', 'bare'"),
        (f"{described}:bare", {}, "validation", "source", "there are: train; give --data.validation_share"),
        (f"{described}:plain", {"text_column": "review"}, "train", "column", "there are: text, label"),
        (unlabelled, columns, "validation", "label", "row 1.*unlabelled"),
        (unlabelled, columns | {"label_names": ["pos", "bad"]}, "train", "label", "row 1: label 'neg' is outside"),
        (unlabelled, columns | {"label_names": ["a", "b", "c"]}, "train", "label", "row 1: label 'neg' is outside"),
        ("hub:somebody/films", {}, "train", "source", "somebody/films"),
        ("hub:", {}, "train", "source", "expected hub:NAME"),
        ("hub:../elsewhere", {}, "train", "source", "expected hub:NAME"),
    ):
        with pytest.raises(UserError, match=said) as error:
            of(source, **given).read(split)
        assert error.value.key == f"data.{key}"
        assert "\n" not in str(error.value)
