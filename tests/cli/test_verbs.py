"""The verbs as a user types them, on a tiny encoder; one of them through a pipe of a fresh process."""

import csv
import io
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from lora_pl.cli import import_adapter, predict_adapters
from lora_pl.cli.main import VERBS, main
from lora_pl.data.texts import TextStream
from lora_pl.errors import UserError
from tests.cli.mistakes import error_of
from tests.support import run_in_process

LINES = ["the film is good", "", "the plot is dull"]


@pytest.fixture
def run_folder(checkpoint):
    return checkpoint.parents[2]


def settings_of(run_folder):
    return yaml.safe_load((run_folder / "checkpoints" / "tiny" / "config.yaml").read_text())


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_fit_leaves_checkpoints_configuration_and_logs(run_folder):
    folder = run_folder / "checkpoints" / "tiny"
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt", "config.yaml"}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["head_learning_rate"] == 0.1
    assert config["data"]["batch_size"] == 8


def test_tensorboard_shows_the_run(run_folder):
    events = scalars(run_folder / "logs" / "tiny")
    tags = events.Tags()
    assert {
        "train/loss", "train/accuracy", "val/loss", "val/accuracy",
        "throughput/sentences_per_second", "throughput/tokens_per_second", "lr/adapters", "lr/head",
    } <= set(tags["scalars"])  # fmt: skip
    assert {"parameters/text_summary", "config/text_summary"} <= set(tags["tensors"])
    assert "hp_metric" not in tags["scalars"]
    assert events.Scalars("throughput/sentences_per_second")[-1].value > 0
    assert len(events.Scalars("val/accuracy")) == 4


def test_the_hparams_tab_holds_the_settings_and_the_real_metric(run_folder):
    from tensorboard.plugins.hparams import plugin_data_pb2

    content = scalars(run_folder / "logs" / "tiny").SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["model.lora.r"].number_value == 4
    assert settings["data.batch_size"].number_value == 8
    assert settings["trainer.max_epochs"].number_value == settings_of(run_folder)["trainer"]["max_epochs"]
    assert {"model.encoder", "data.source"} <= {*settings}
    assert "data.encoder" not in settings  # it is the model's
    content = scalars(run_folder / "logs" / "tiny").SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["val/accuracy", "val/loss"]


def test_validate_and_test_need_nothing_but_the_checkpoint(run_folder, checkpoint, glue_folder):
    done = run_in_process(["validate", "--ckpt_path", str(checkpoint)], run_folder.parent, check=True)
    accuracy = float(re.search(r"accuracy ([\d.]+)", done.stdout).group(1))
    assert accuracy == pytest.approx(
        max(e.value for e in scalars(run_folder / "logs" / "tiny").Scalars("val/accuracy")), abs=5e-5
    )
    done = run_in_process(["test", "--ckpt_path", str(checkpoint)], run_folder.parent, check=True)
    assert f"accuracy {accuracy:.4f}" in done.stdout
    assert "labelled validation split" in done.stderr


def test_flags_win_over_the_checkpoint(checkpoint, tmp_path, glue_folder):
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\nfine\t1\n")
    done = run_in_process(
        ["validate", "--ckpt_path", str(checkpoint), "--data.source", str(tmp_path)], tmp_path, check=True
    )
    assert "validation: 3 sentences" in done.stderr


@pytest.mark.parametrize("given", ["lines", "csv", "stdin"])
def test_predict_reads_lines_tables_and_standard_input(given, checkpoint, tmp_path):
    text = "\n".join(LINES) + "\n"
    arguments = ["predict", "--ckpt_path", str(checkpoint)]
    if given == "lines":
        (tmp_path / "x.txt").write_text(text)
        arguments += ["--input", "x.txt"]
    elif given == "csv":
        with (tmp_path / "x.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["id", "sentence"], *enumerate(LINES)])
        arguments += ["--input", "x.csv"]
    done = run_in_process(arguments, tmp_path, check=True, text_input=text if given == "stdin" else None)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == LINES
    assert all(set(row) == {"text", "label", "score", "probabilities"} for row in rows)
    from lora_pl import LoRAClassifier

    expected = LoRAClassifier.load_from_checkpoint(checkpoint).predict(LINES)
    assert [row["label"] for row in rows] == [row["label"] for row in expected]


TABLE = [{"id": str(number), "sentence": text, "label": "as given"} for number, text in enumerate(LINES)]


def as_table(format: str) -> str:
    if format == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in TABLE)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(TABLE[0]), delimiter="," if format == "csv" else "\t")
    writer.writeheader()
    writer.writerows(TABLE)
    return text.getvalue()


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl"])
def test_a_table_on_standard_input_needs_its_format(format, monkeypatch):
    def read(*given):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(as_table(format).encode())))
        return [text for chunk in TextStream("-", *given) for text in chunk]

    with pytest.raises(UserError, match=f"give --input_format {format}, or --input_format text"):
        read(["sentence"])
    assert read(["sentence"], "text")[0] == as_table(format).splitlines()[0]
    assert read(["sentence", "id"], format) == [(row["sentence"], row["id"]) for row in TABLE]


def test_columns_are_kept_beside_the_answers(checkpoint, tmp_path):
    arguments = ["predict", "--ckpt_path", str(checkpoint), "--input_format", "csv", "--keep_columns", "[id,label]"]
    rows = list(map(json.loads, run_in_process(arguments, tmp_path, True, as_table("csv")).stdout.splitlines()))
    assert [{"id": row["id"], "sentence": row["text"], "label": row["input_label"]} for row in rows] == TABLE
    assert {row["label"] for row in rows} <= {"negative", "positive"}


@pytest.mark.parametrize(
    ("kept", "written_as"), [("id", "id"), ("probabilities.negative", "input_probabilities.negative")]
)
def test_predict_writes_csv(kept, written_as, checkpoint, tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text(as_table("csv").replace("id", kept, 1))
    keep = ["--keep_columns", f"[{kept}]"]
    arguments = ["predict", "--ckpt_path", str(checkpoint), "--input", "x.csv", *keep, "--output"]
    monkeypatch.chdir(tmp_path)
    for name in ("y.csv", "y.jsonl"):
        assert main([*arguments, name]) == 0
    rows = [json.loads(line) for line in (tmp_path / "y.jsonl").open()]
    with (tmp_path / "y.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    for row, cells in zip(rows, written, strict=True):
        chances = {f"probabilities.{label}": chance for label, chance in row.pop("probabilities").items()}
        assert cells == {name: str(value) for name, value in {**row, **chances}.items()}
    assert [cells[written_as] for cells in written] == [row["id"] for row in TABLE]


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_predict_writes_files(name, checkpoint, tmp_path):
    (tmp_path / "x.txt").write_text("\n".join(LINES * 400))
    done = run_in_process(
        ["predict", "--ckpt_path", str(checkpoint), "--input", "x.txt", "--output", name], tmp_path, check=True
    )
    assert done.stdout == ""
    assert f"1,200 predictions in {name}" in done.stderr
    path = tmp_path / name
    rows = pq.read_table(path).to_pylist() if name.endswith("parquet") else map(json.loads, path.open())
    assert [row["text"] for row in rows] == LINES * 400
    assert {p.name for p in tmp_path.iterdir()} == {"x.txt", name}


def test_a_checkpoint_is_resumed_in_the_same_run(run_folder, tmp_path, tiny_encoder, glue_folder):
    from shutil import copytree

    copytree(run_folder, tmp_path / "copy")
    last = "checkpoints/tiny/last.ckpt"
    done = run_in_process(["fit", "--ckpt_path", last, "--trainer.max_epochs", "6"], tmp_path / "copy", check=True)
    assert "epoch 5/6  step 30" in done.stderr
    config = yaml.safe_load((tmp_path / "copy" / "checkpoints" / "tiny" / "config.yaml").read_text())
    assert (config["trainer"]["max_epochs"], config["data"]["batch_size"]) == (6, 8)
    assert "epoch 3/6" not in done.stderr
    assert [path.name for path in (tmp_path / "copy" / "checkpoints").glob("[!.]*")] == ["tiny"]


def test_callbacks_of_ones_own(tiny_encoder, glue_folder, tmp_path):
    """And a validation loss that can't fall by 10 stops the run after two epochs."""
    Path("own.yaml").write_text(
        "trainer:\n  max_epochs: 9\n  callbacks:\n  - class_path: EarlyStopping\n    init_args:\n"
        "      {monitor: val/loss, patience: 1, min_delta: 10}\n"
    )
    own = ["fit", "-c", "own.yaml", "--model.encoder", tiny_encoder(), "--data.source", str(glue_folder)]
    assert main([*own, "--run_name", "own"]) == 0
    import torch

    assert torch.load("checkpoints/own/last.ckpt", weights_only=True)["epoch"] == 1


def test_a_second_run_never_overwrites_a_first(run_folder, glue_folder, tiny_encoder):
    before = (run_folder / "checkpoints" / "tiny" / "best.ckpt").read_bytes()
    again = ["fit", "--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--run_name", "tiny"]
    done = run_in_process(again, run_folder)
    assert (done.returncode, error_of(done.stderr)[0]) == (1, "run_name")
    assert (run_folder / "checkpoints" / "tiny" / "best.ckpt").read_bytes() == before


def test_a_custom_task_goes_the_whole_way(tiny_encoder, tmp_path):
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["review", "stars"], ["good", "happy"], ["bad", "sad"], ["is", "neither"]])
    own = ["--data.train_file", "mine.csv", "--data.validation_file", "mine.csv", "--data.text_column", "review"]
    arguments = ["fit", "--model.encoder", tiny_encoder(), *own, "--data.label_column", "stars", "--run_name", "own"]
    done = run_in_process([*arguments, "--trainer.max_epochs", "1"], tmp_path, check=True)
    assert "lora_pl predict --ckpt_path" in done.stderr
    checkpoint = str(tmp_path / "checkpoints" / "own" / "best.ckpt")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_in_process(["validate", "--ckpt_path", checkpoint], elsewhere, check=True)
    done = run_in_process(["predict", "--ckpt_path", checkpoint], elsewhere, check=True, text_input="good\n")
    assert set(json.loads(done.stdout)["probabilities"]) == {"happy", "neither", "sad"}


def test_the_demos_configuration_is_the_real_thing_but_small(tmp_path):
    """configs/demo.yaml itself, cut to two steps."""
    config = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
    limits = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    done = run_in_process(["fit", "--config", str(config), *limits], tmp_path, check=True)
    assert re.search(r"checkpoints/demo-\d{8}-\d{6}/best.ckpt", done.stderr)
    assert "best accuracy" in done.stderr
    assert "frozen │  5,282,048" in re.sub(r" +", " ", done.stderr).replace("frozen │ ", "frozen │  ")


@pytest.mark.parametrize("config", ["sst2_roberta_base.yaml", "demo.yaml"])
def test_configurations_parse(config, capsys):
    path = Path(__file__).resolve().parents[2] / "configs" / config
    assert main(["fit", "--config", str(path), "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert_covers(printed, yaml.safe_load(path.read_text()))


def assert_covers(printed, given):
    """Everything that is given is printed, beside defaults."""
    if isinstance(given, dict):
        for key, value in given.items():
            assert_covers(printed[key], value)
    elif isinstance(given, list) and given and isinstance(given[0], dict):
        assert len(printed) == len(given)
        for one, other in zip(printed, given, strict=True):
            assert_covers(one, other)
    else:
        assert printed == (float(given) if isinstance(printed, float) else given)


@pytest.mark.parametrize(
    ("verb", "own"), [("export", "--merge_dtype"), ("import", "--lora_alpha"), ("params", "--ranks")]
)
def test_help_of_the_smaller_verbs(verb, own, capsys):
    assert main([verb, "--help"]) == 0
    assert own in capsys.readouterr().out


def test_a_verb_takes_the_names_that_its_options_have_in_fit():
    found = import_adapter.make_parser().parse_args(["x", "--model.encoder=a=b", "--model.lora.lora_alpha", "8"])
    assert (found.source, found.encoder, found.lora_alpha) == ("x", "a=b", 8)
    found = predict_adapters.make_parser().parse_args(
        ["--adapter", "a=b", "--data.text_column", "review", "--encoder", "c"]
    )
    assert (found.text_column, found.encoder) == ("review", "c")


def test_params_prints_a_table_by_rank(tiny_encoder, capsys):
    assert main(["params", "--model.encoder", tiny_encoder(), "--ranks", "1", "2"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"│ 2 │ +256 │ +34 │ +290 │", said)
    assert "unused pooler" in said


def test_main_page_and_version(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(verb in page for verb in VERBS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lora_pl 0.")
    assert main([]) == 2
