"""A user's mistakes: one or two lines on standard error, an exit code that is not 0, nothing half-written."""

from pathlib import Path

import pytest
import torch

from lora_pl.cli.main import main
from tests.cli.mistakes import error_of, fails


@pytest.fixture
def fit(tiny_encoder, glue_folder):
    return ["fit", "--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--run_name", "bad"]


def test_verbs_and_keys(capsys, fit):
    assert fails(capsys, "fti", code=2) == "verb"
    assert fails(capsys, *fit, "--modle.lora.r", "1", code=2) == "usage"
    Path("bad.yaml").write_text("data:\n  batchsize: 3\n")
    assert fails(capsys, *fit, "--config", "bad.yaml", code=2) == "usage"
    Path("broken.yaml").write_text("data: [\n")
    assert fails(capsys, *fit, "--config", "broken.yaml", code=2) == "config"
    assert fails(capsys, *fit, "--config", "none.yaml", code=2) == "config"
    Path("tabs.yaml").write_text("model:\n\thead: linear\n")
    assert main([*fit, "--config", "tabs.yaml"]) == 2
    assert "line 2, column 1; indent by spaces, not tabs" in " ".join(capsys.readouterr().err.split())
    for content, key in (("config: {a: 1}", "config"), ("trainer: [1]", "trainer")):
        Path("wrong.yaml").write_text(content)
        assert fails(capsys, *fit, "--config", "wrong.yaml", code=2) == key
    for seed in ("-1", "true", "false"):
        assert fails(capsys, *fit, f"--seed_everything={seed}", code=2) == "seed_everything"
    assert fails(capsys, *fit, "--model.lora.r", "four", code=2) == "model.lora.r"
    assert fails(capsys, *fit, "--model.lora.scaling", "rs", code=2) == "model.lora.scaling"
    assert fails(capsys, *fit, "--data.batch_size", code=2) == "data.batch_size"


@pytest.mark.parametrize(
    ("content", "key", "said"),
    [
        ("modle: {lora: {r: 4}}", "usage", "bad.yaml, line 2: there is no option --modle.lora.r"),
        ("data:\n  batchsize: 3", "usage", "bad.yaml, line 3: there is no option --data.batchsize; did you mean"),
        ("model.lora.rank: 3", "usage", "bad.yaml, line 2: there is no option --model.lora.rank; did you mean"),
        ("model:\n  lora:\n    r: four", "model.lora.r", "bad.yaml, line 4: expected int, got four"),
        ("model: {schedule: cosine}", "model.schedule", "bad.yaml, line 2: expected one of constant, linear"),
        ("trainer:\n  callbacks: [{class_path: Such}]", "trainer.callbacks", "bad.yaml, line 3: no class Such"),
        ("trainer: [1]", "trainer", "bad.yaml, line 2: expected"),
        ("- model", "config", "bad.yaml: "),
        ("model: [", "config", "bad.yaml: "),
    ],
)
def test_a_mistake_in_one_of_two_configurations(content, key, said, capsys, fit):
    """The file is named, and the line where there is one."""
    Path("good.yaml").write_text("model: {lora: {r: 2}, schedule: constant}\n")
    Path("bad.yaml").write_text(f"# comment\n{content}\n")
    for files in (["good.yaml", "bad.yaml"], ["bad.yaml", "good.yaml"]):
        assert main([*fit, *(f"--config={file}" for file in files), "--model.lora.r=2"]) == 2
        found = error_of(capsys.readouterr().err)
        assert found[0] == key
        assert " ".join(found[1].split()).startswith(said)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--model.lora.r", "0"], "r"),
        (["--model.lora.target_modules", "[quary]"], "target_modules"),
        (["--model.lora.layers", "1-2"], "layers"),
        (["--model.lora.exclude", "quary"], "exclude"),
        (["--model.lora.lr_ratio", "0"], "lr_ratio"),
        (["--model.learning_rate", "-1"], "model.learning_rate"),
        (["--data.task", "sst3"], "task"),
        (["--data.train_file", "none.csv", "--data.validation_file", "none.csv"], "data.missing"),
        (["--data.train_file", "~nobody-here/none.csv", "--data.validation_file", "none.csv"], "data.missing"),
        (["--model.encoder", "./nowhere"], "model.encoder"),
        (["--trainer.accelerator", "gpu"], "trainer"),
        (["--trainer.accelerator", "gpuu"], "trainer"),
        (["--trainer.strategy", "dpp"], "trainer"),
        (["--trainer.precision", "16-true"], "trainer.precision"),
    ],
)
def test_settings_out_of_range(arguments, key, capsys, fit):
    if arguments[1] == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert fails(capsys, *fit, *arguments) == key


def test_a_hub_out_of_reach(capsys):
    assert fails(capsys, "fit", "--model.encoder", "no-such/encoder", "--data.source", "sample") == "model.encoder"


def test_a_process_whose_neighbour_fails_has_no_traceback(capsys, monkeypatch):
    said = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:14763."

    def run(args):
        raise RuntimeError(said)

    monkeypatch.setattr("lora_pl.cli.params.run", run)
    assert fails(capsys, "params") == "trainer"


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b"sentence\tlabel\nfine\t3\n", "data.label"),
        (None, "data.missing"),
    ],
)
def test_data_files(content, key, capsys, fit, tmp_path, glue_folder):
    (tmp_path / "dev.tsv").write_bytes((glue_folder / "dev.tsv").read_bytes())
    if content is not None:
        (tmp_path / "train.tsv").write_bytes(content)
    assert fails(capsys, *fit, "--data.source", str(tmp_path)) == key


def test_checkpoints(capsys, checkpoint, tmp_path):
    from tests.storage.test_checkpoint import damaged

    assert fails(capsys, "validate", code=2) == "ckpt_path"
    for kind in ("missing", "empty", "truncated", "foreign", "torch pickle"):
        path = damaged(kind, checkpoint, tmp_path / kind.replace(" ", "_"))
        for verb in ("fit", "validate", "predict"):
            assert fails(capsys, verb, "--ckpt_path", str(path)).startswith("checkpoint.")
    assert not Path("harmed").exists()


@pytest.mark.parametrize(
    "arguments", [["--model.lora.r", "2"], ["--model.head", "architecture"], ["--data.label_names", "[bad,good]"]]
)
def test_a_checkpoint_of_other_settings(arguments, capsys, checkpoint):
    assert fails(capsys, "validate", "--ckpt_path", str(checkpoint), *arguments) == "checkpoint.settings"


def test_a_checkpoint_of_another_encoder(capsys, checkpoint, tiny_encoder, tmp_path):
    from lora_pl.encoder.loading import build_encoder, load_config, load_tokenizer

    build_encoder(load_config(tiny_encoder())).save_pretrained(tmp_path)
    load_tokenizer(tiny_encoder()).save_pretrained(tmp_path)
    other = ["validate", "--ckpt_path", str(checkpoint), "--model.encoder", str(tmp_path)]
    assert fails(capsys, *other) == "checkpoint.base"


def test_texts_to_predict(capsys, checkpoint, tmp_path):
    predict = ["predict", "--ckpt_path", str(checkpoint), "--output", "out.jsonl", "--input"]
    (tmp_path / "x.csv").write_text("text\nfine\n")
    (tmp_path / "x.txt").write_bytes(b"fine\n" * 600 + b"\xff\n")
    assert fails(capsys, *predict, "none.txt") == "input"
    assert fails(capsys, *predict, str(tmp_path / "x.csv")) == "data.column"
    assert fails(capsys, *predict, str(tmp_path / "x.txt")) == "data.encoding"
    for output in ("nowhere/out.jsonl", "out.xlsx", "out"):
        assert fails(capsys, *predict[:4], output, "--input", str(tmp_path / "x.txt")) == "output"
    assert fails(capsys, *predict, str(tmp_path / "x.txt"), "--keep_columns", "[id]") == "keep_columns"
    assert fails(capsys, *predict, str(tmp_path / "x.csv"), "--keep_columns", "[id]") == "data.column"
    for kept in ("[label,input_label]", "[id,id]"):
        assert fails(capsys, *predict, str(tmp_path / "x.csv"), "--keep_columns", kept) == "keep_columns"
    assert main([*predict, str(tmp_path / "x.csv"), "--keep_columns", "id,text"]) == 2
    assert error_of(capsys.readouterr().err) == ("keep_columns", "expected a list such as [a,b], got id,text")
