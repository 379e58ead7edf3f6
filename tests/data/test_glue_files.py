import pytest

from lora_pl.data.sources import read_glue_file, read_split
from lora_pl.data.tasks import CUSTOM_TASK, GLUE_TASKS
from lora_pl.errors import UserError

MNLI_HEADER = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label"
)
# a header and two lines in the real layout of each task, the texts and the labels that they hold
LAYOUTS = {
    "sst2": (["sentence\tlabel", "fine \"\t1", "bad\t0"], [['fine "', "bad"]], [1, 0]),
    "cola": (["gj04\t1\t\tHe sleeps.", "gj04\t0\t*\tHe sleep."], [["He sleeps.", "He sleep."]], [1, 0]),
    "mrpc": (["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t7\t8\ta\tb"], [["a"], ["b"]], [1]),
    "qqp": (["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\ta?\tb?\t0"], [["a?"], ["b?"]], [0]),
    "stsb": (
        ["index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
         "0\tg\tf\t2012\t1\tn\tn\ta\tb\t3.800"], [["a"], ["b"]], [3.8],
    ),
    "mnli": (
        [MNLI_HEADER, "0\t1\t2\tg\tp\tp\tp\tp\ta\tb\tneutral\tneutral",
         "1\t1\t2\tg\tp\tp\tp\tp\tc\td\tcontradiction\tcontradiction"], [["a", "c"], ["b", "d"]], [1, 2],
    ),
    "qnli": (["index\tquestion\tsentence\tlabel", "0\ta?\tb\tnot_entailment"], [["a?"], ["b"]], [1]),
    "rte": (["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tentailment"], [["a"], ["b"]], [0]),
    "wnli": (["index\tsentence1\tsentence2\tlabel", "0\ta\tb\t1"], [["a"], ["b"]], [1]),
}  # fmt: skip


@pytest.mark.parametrize("task", GLUE_TASKS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_real_layouts(task, newline, tmp_path):
    lines, texts, labels = LAYOUTS[task]
    path = tmp_path / "x.tsv"
    path.write_bytes(("\ufeff" * (newline == "\r\n") + newline.join(lines) + newline).encode())
    examples = read_glue_file(path, GLUE_TASKS[task])
    assert [list(column) for column in examples.texts] == texts
    assert examples.labels == labels


@pytest.mark.parametrize("label", ["2", "-1", "", "NaN"])
def test_bad_labels_are_told_with_file_and_line(label, tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text(f"sentence\tlabel\ndull\t0\nfine\t{label}\n")
    with pytest.raises(UserError, match=r"^data.label: .*train\.tsv, line 3"):
        read_glue_file(path, GLUE_TASKS["sst2"])


@pytest.mark.parametrize("score", ["nan", "inf", "high", ""])
def test_a_score_that_is_no_number(score, tmp_path):
    path = tmp_path / "dev.tsv"
    path.write_text("\n".join([LAYOUTS["stsb"][0][0], "0\tg\tf\t2012\t1\tn\tn\ta\tb\t" + score]))
    with pytest.raises(UserError, match="^data.label: .*line 2"):
        read_glue_file(path, GLUE_TASKS["stsb"])


def test_a_blank_sentence_is_kept_and_counted(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\n \t1\nfine\t1\n\t0\n")
    examples = read_glue_file(path, GLUE_TASKS["sst2"])
    assert len(examples) == 3
    assert examples.blank == 2


def test_missing_files_and_folders(tmp_path):
    for source, task, key in (
        (tmp_path, "sst2", "missing"),
        (tmp_path / "x", "sst2", "source"),
        ("sample", "rte", "source"),
    ):
        with pytest.raises(UserError, match=f"^data.{key}: "):
            read_split(str(source), GLUE_TASKS[task], "train")


def test_own_tasks_name_the_file_that_is_missing():
    for split in ("train", "validation"):
        with pytest.raises(UserError, match=f"give --data.{split}_file, or --data.source"):
            read_split("hub", CUSTOM_TASK, split)


def test_a_hub_out_of_reach_names_the_ways_on(monkeypatch):
    import datasets

    def refuse(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match="^data.source: .*no route"):
        read_split("hub", GLUE_TASKS["sst2"], "train")


def test_hub_columns_and_labels(monkeypatch):
    import datasets

    rows = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [0, 2], "idx": [0, 1]}
    asked = []

    def load(name, task, split):
        asked.append((name, task, split))
        return datasets.Dataset.from_dict(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    examples = read_split("hub", GLUE_TASKS["mnli"], "validation_mismatched")
    assert asked == [("nyu-mll/glue", "mnli", "validation_mismatched")]
    assert [list(column) for column in examples.texts] == [["a", "b"], ["c", "d"]]
    assert examples.labels == [0, 2]
    rows["label"] = [0, -1]
    with pytest.raises(UserError, match="^data.label: .*row 2"):
        read_split("hub", GLUE_TASKS["mnli"], "train")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("task", "folder", "train", "dev"), [("sst2", "SST-2", 67_349, 872), ("rte", "RTE", 2_490, 277)]
)
def test_the_real_files(task, folder, train, dev, shared):
    for source in (shared / "glue", shared / "glue" / folder):
        assert len(read_split(str(source), GLUE_TASKS[task], "validation")) == dev
    examples = read_split(str(shared / "glue"), GLUE_TASKS[task], "train")
    assert len(examples) == train
    assert set(examples.labels) == {0.0, 1.0}
