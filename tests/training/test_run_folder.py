from pathlib import Path

import pytest

from lora_pl.cli.shared_options import early_value, option_value
from lora_pl.errors import UserError
from lora_pl.training.run_folder import require_free, run_name


def test_the_name_is_the_configurations_and_the_time():
    assert run_name(None, "configs/demo.yaml", None).startswith("demo-20")
    assert run_name(None, None, None).startswith("run-20")
    assert run_name("mine", "configs/demo.yaml", None) == "mine"


def test_a_run_with_checkpoints_is_taken_and_one_that_failed_before_is_not():
    folder = Path("checkpoints/mine")
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    require_free(folder, None)
    (folder / "last.ckpt").touch()
    require_free(folder, folder / "last.ckpt")
    with pytest.raises(UserError, match="^run_name: "):
        require_free(folder, None)


def test_a_resumed_run_keeps_its_name():
    assert run_name(None, "configs/demo.yaml", "checkpoints/mine/last.ckpt") == "mine"
    assert run_name("mine", None, "checkpoints/mine/last.ckpt") == "mine"
    assert run_name(None, "configs/demo.yaml", "elsewhere/last.ckpt").startswith("demo-")


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (["--config", "a.yaml"], "a.yaml"),
        (["-c", "a.yaml"], "a.yaml"),
        (["--config=a.yaml", "--x", "1"], "a.yaml"),
        (["--config", "a.yaml", "--config", "b.yaml"], "b.yaml"),
        (["--configs", "a.yaml"], None),
        (["--config"], None),
    ],
)
def test_an_options_value(args, value):
    assert option_value(args, "--config", "-c") == value


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (["--config", "mine.yaml", "--config", "other.yaml"], "mine"),
        (["-c", "other.yaml", "--config=mine.yaml"], "mine"),
        (["--config", "mine.yaml", "-c", "last.yaml"], "last"),
        (["--config", "mine.yaml", "--run_name", "given"], "given"),
        (["--config", "mine.yaml", "--config", "absent.yaml"], None),
    ],
)
def test_an_options_value_in_configurations(args, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {"mine": "run_name: mine", "last": "run_name: last", "other": "model: {dropout: 0.5}"}.items():
        Path(f"{name}.yaml").write_text(text)
    assert early_value(args, "run_name") == value
