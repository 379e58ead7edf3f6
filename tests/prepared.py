"""What a process that runs tests has: fixtures (tiny real encoders, a trained checkpoint), and less to wait for."""

import gc
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lora_pl.callbacks import confusion_figure
from lora_pl.encoder.fingerprint import base_fingerprints
from lora_pl.encoder.loading import load_encoder, pretrained_head_layers
from lora_pl.model import base
from lora_pl.training import run_log
from tests.conftest import SHARED
from tests.support import (
    parse_docstrings_once,
    process_state,
    read_once,
    run_in_process,
    tiny_config,
    tiny_tokenizer,
    write_glue_split,
)

READ_ONCE = (load_encoder, pretrained_head_layers, base_fingerprints)
"""What reads an encoder's files, for a base."""


def pytest_configure() -> None:
    """Less to wait for: no test of this process ends in a power cut, so nothing is flushed to the disk.

    Every run would draw its confusion matrix, and a resumed one wait until a second has passed since its first log; for
    every model Transformers reads the encoder's files anew.
    """
    torch.set_num_threads(1)
    for function in READ_ONCE:
        setattr(base, function.__name__, read_once(function))
    confusion_figure.find_spec = lambda name: None  # no picture but in the tests of it
    run_log.time = SimpleNamespace(time=time.time, sleep=lambda seconds: None)  # nor a wait
    os.fsync = lambda descriptor: None
    parse_docstrings_once()


def pytest_collection_finish() -> None:
    """The libraries stay, so the collector need not walk them again and again: a fifth of most tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing reads the user's cache."""
    with process_state():
        os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="session")
def _folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """By number: pytest looks through all folders that there are for the name of the next one."""
    place = tmp_path_factory.mktemp("cwd")
    return (place / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _own_folder(_own_cache: None, _folders: Iterator[Path]) -> Iterator[None]:
    """No test writes into the checkout or sees what another left in the process, its seed included."""
    with process_state():
        folder = next(_folders)
        folder.mkdir()
        os.chdir(folder)
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory):
    """The folder of a tiny encoder with random weights, by model type: `tiny_encoder("bert")`."""
    from transformers import AutoModel

    made: dict[str, str] = {}

    def make(kind: str = "roberta") -> str:
        if kind not in made:
            torch.manual_seed(1)
            folder = tmp_path_factory.mktemp(kind)
            AutoModel.from_config(tiny_config(kind)).save_pretrained(folder)
            tiny_tokenizer(kind).save_pretrained(folder)
            made[kind] = str(folder)
        return made[kind]

    return make


@pytest.fixture
def reads_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder is read from its files each time."""
    for function in READ_ONCE:
        monkeypatch.setattr(f"lora_pl.model.base.{function.__name__}", function)


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny task in the layout of GLUE's SST-2: praise words are positive."""
    folder = tmp_path_factory.mktemp("SST-2")
    praise, blame = ["good", "fine", "great", "bright"], ["bad", "awful", "dull", "slow"]
    rows = [f"the {noun} is {very}{word}\t{int(word in praise)}"
            for noun in ("film", "plot", "cast") for very in ("", "very ") for word in praise + blame]  # fmt: skip
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("\n".join(["sentence\tlabel", *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def glue_download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GLUE download: every task's folder."""
    from lora_pl.data.tasks import GLUE_TASKS

    download = tmp_path_factory.mktemp("glue_data")
    for task in GLUE_TASKS.values():
        (download / task.folder).mkdir()
        for name in ("train.tsv", *task.validation.values()):
            write_glue_split(download / task.folder / name, task)
    return download


@pytest.fixture(scope="session")
def checkpoint(tiny_encoder, glue_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.ckpt of a tiny run by the command."""
    cwd = tmp_path_factory.mktemp("run")
    arguments = ["--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--data.batch_size", "8"]
    arguments += ["--model.learning_rate", "3e-2", "--model.head_learning_rate", "1e-1", "--run_name", "tiny"]
    run_in_process(["fit", *arguments, "--trainer.max_epochs", "4"], cwd, check=True)
    return cwd / "checkpoints" / "tiny" / "best.ckpt"


@pytest.fixture
def empty_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without pictures, for tests that look elsewhere: drawing takes as long as a tiny trial."""

    def write(figure, file, **options) -> None:
        file.write(b"") if hasattr(file, "write") else Path(file).touch()

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", write)
