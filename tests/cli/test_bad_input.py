"""A user's mistakes: one or two lines on standard error, an exit code that is not 0, nothing half-written."""

from pathlib import Path

import pytest
import torch

from lora_pl.cli.main import main


def fails(capsys, *arguments: str, code: int = 1) -> str:
    """What the command says when it fails as it should."""
    before = set(Path.cwd().rglob("*"))
    assert main(list(arguments)) == code
    said = capsys.readouterr().err
    message = said[said.index("lora_pl") :]
    assert "Traceback" not in said
    assert len(message.strip().splitlines()) <= 2
    left = {path for path in Path.cwd().rglob("*") if path.is_file()} - before
    assert not {path for path in left if path.suffix in (".ckpt", ".jsonl", ".parquet")}
    return message


@pytest.fixture
def fit(tiny_encoder, glue_folder):
    return ["fit", "--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--run_name", "bad"]


def test_verbs_and_keys(capsys, fit):
    assert "did you mean fit?" in fails(capsys, "fti", code=2)
    assert "did you mean --model.learning_rate?" in fails(capsys, *fit, "--model.learning_rte", "1", code=2)
    assert "did you mean --model.lora.r?" in fails(capsys, *fit, "--modle.lora.r", "1", code=2)
    Path("bad.yaml").write_text("data:\n  batchsize: 3\n")
    assert "did you mean --data.batch_size?" in fails(capsys, *fit, "--config", "bad.yaml", code=2)
    Path("broken.yaml").write_text("data: [\n")
    fails(capsys, *fit, "--config", "broken.yaml", code=2)
    assert "none.yaml" in fails(capsys, *fit, "--config", "none.yaml", code=2)
    assert "int" in fails(capsys, *fit, "--model.lora.r", "four", code=2)
    fails(capsys, *fit, "--model.schedule", "cosine", code=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.lora.r", "0"], "r: expected an integer >= 1, got 0"),
        (["--model.lora.r", "17"], "r: expected at most 16"),
        (["--model.lora.target_modules", "[quary]"], "'quary' matches no linear layer; there are: encoder.layer"),
        (["--model.learning_rate", "-1"], "model.learning_rate: expected a number > 0"),
        (["--data.task", "sst3"], "did you mean sst2?"),
        (["--data.source", "nowhere"], "data.source: nowhere is no folder"),
        (["--data.batch_size", "0"], "data.batch_size: expected at least 1"),
        (["--data.train_file", "none.csv", "--data.validation_file", "none.csv"], "none.csv: no such file"),
        (["--model.encoder", "./nowhere"], "encoder: ./nowhere is no folder"),
        (["--trainer.accelerator", "gpu"], "gpu"),
        (["--trainer.accelerator", "gpuu"], "gpuu"),
        (["--trainer.strategy", "dpp"], "dpp"),
        (["--trainer.precision", "16-true"], "would be trained in fp16"),
        (["--run_name", "a/b"], "run_name: expected a name without slashes"),
    ],
)
def test_settings_out_of_range(arguments, said, capsys, fit):
    if arguments[1] == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert said in fails(capsys, *fit, *arguments)


def test_a_hub_out_of_reach(capsys, tiny_encoder):
    said = fails(capsys, "fit", "--model.encoder", "no-such/encoder", "--data.source", "sample")
    assert "demo.yaml" in said
    assert "--data.source" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "train.tsv: the file is empty"),
        (b"text\tlabel\nfine\t1\n", "train.tsv: no column 'sentence'"),
        (b"sentence\tlabel\nfine\t3\n", "train.tsv, line 2: label '3'"),
        (b"sentence\tlabel\nfine\t-1\n", "train.tsv, line 2: label '-1'"),
        (b"sentence\tlabel\nfine\n", "train.tsv, line 2: expected 2 columns"),
        (b"sentence\tlabel\n\xff\t1\n", "train.tsv, line 2: not UTF-8"),
        (None, "train.tsv: no such file"),
    ],
)
def test_data_files(content, said, capsys, fit, tmp_path, glue_folder):
    (tmp_path / "dev.tsv").write_bytes((glue_folder / "dev.tsv").read_bytes())
    if content is not None:
        (tmp_path / "train.tsv").write_bytes(content)
    assert said in fails(capsys, *fit, "--data.source", str(tmp_path))


def test_checkpoints(capsys, checkpoint, tmp_path):
    from tests.storage.test_checkpoint import damaged

    assert "ckpt_path: expected --ckpt_path" in fails(capsys, "validate", code=2)
    for kind, said in {
        "missing": "no such checkpoint",
        "empty": "the file is empty",
        "truncated": "truncated or no checkpoint",
        "foreign": "lora_pl did not write this file",
        "torch pickle": "refused",
    }.items():
        path = damaged(kind, checkpoint, tmp_path / kind.replace(" ", "_"))
        for verb in ("fit", "validate", "predict"):
            assert said in fails(capsys, verb, "--ckpt_path", str(path))
    assert not Path("harmed").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.lora.r", "2"], "trained with lora.r = 4, but the model has lora.r = 2"),
        (["--model.head", "architecture"], "head = architecture"),
        (["--data.label_names", "[bad,good]"], "label_names = ['bad', 'good']"),
    ],
)
def test_a_checkpoint_of_other_settings(arguments, said, capsys, checkpoint):
    assert said in fails(capsys, "validate", "--ckpt_path", str(checkpoint), *arguments)


def test_a_checkpoint_of_another_encoder(capsys, checkpoint, tiny_encoder, tmp_path):
    from lora_pl.encoder.loading import build_encoder, load_config, load_tokenizer

    build_encoder(load_config(tiny_encoder())).save_pretrained(tmp_path)
    load_tokenizer(tiny_encoder()).save_pretrained(tmp_path)
    said = fails(capsys, "validate", "--ckpt_path", str(checkpoint), "--model.encoder", str(tmp_path))
    assert "checkpoint.base" in said


def test_texts_to_predict(capsys, checkpoint, tmp_path):
    predict = ["predict", "--ckpt_path", str(checkpoint), "--output", "out.jsonl", "--input"]
    assert "none.txt: no such file" in fails(capsys, *predict, "none.txt")
    (tmp_path / "x.csv").write_text("text\nfine\n")
    assert "no column 'sentence'; there are: text" in fails(capsys, *predict, str(tmp_path / "x.csv"))
    (tmp_path / "x.txt").write_bytes(b"fine\n" * 600 + b"\xff\n")
    assert "line 601: not UTF-8" in fails(capsys, *predict, str(tmp_path / "x.txt"))
    assert "there is no folder nowhere" in fails(
        capsys, *predict[:4], "nowhere/out.jsonl", "--input", str(tmp_path / "x.txt")
    )


def test_a_full_disk_while_fitting(capsys, fit, monkeypatch):
    """The second epoch's checkpoint fails; the first epoch's stay whole."""
    save = torch.save

    def full_after_one_epoch(checkpoint, file):
        if checkpoint["epoch"] > 0:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        save(checkpoint, file)

    monkeypatch.setattr(torch, "save", full_after_one_epoch)
    assert main([*fit, "--trainer.max_epochs", "5"]) == 1
    said = capsys.readouterr().err
    assert "could not be written ([Errno 28] No space left on device)" in said
    assert "Traceback" not in said
    folder = Path("checkpoints/bad")
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt", "config.yaml"}
    for name in ("best.ckpt", "last.ckpt"):
        assert torch.load(folder / name, weights_only=True)["epoch"] == 0
