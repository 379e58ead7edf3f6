"""A checkpoint with more in it than adapters and a head."""

from pathlib import Path

import pytest

from tests.support import run_in_process


@pytest.fixture(scope="session")
def in_place(tiny_encoder, glue_folder, tmp_path_factory) -> Path:
    """best.ckpt of a tiny run that trains biases and norms too."""
    cwd = tmp_path_factory.mktemp("in_place")
    arguments = ["--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--run_name", "tiny"]
    arguments += ["--model.train_biases", "all", "--model.train_norms", "true", "--trainer.max_epochs", "1"]
    run_in_process(["fit", *arguments], cwd, check=True)
    return cwd / "checkpoints" / "tiny" / "best.ckpt"
