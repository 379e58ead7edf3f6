"""A run that is resumed at any step ends bit for bit as the run that was never stopped."""

import functools
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.loggers import Logger

from lora_pl import LoRAClassifier, SentenceDataModule
from lora_pl.callbacks.throughput import Throughput
from lora_pl.storage.checkpoint import read_checkpoint
from lora_pl.storage.checkpoint_io import WholeFileCheckpointIO
from lora_pl.training.resume.exact_resume import RESUME_KEY, ExactResume, random_state, set_random_state
from lora_pl.training.resume.saving import BestCheckpoint, LastCheckpoint, SavePoints
from lora_pl.training.resume.stop_signals import RunStopped


class Points(Logger):
    """Keeps what is logged, but for measured speeds."""

    name = version = "points"

    def __init__(self):
        super().__init__()
        self.points = []

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.points.append((step, {k: v if "throughput" not in k else 0 for k, v in metrics.items()}))


class EveryLast(LastCheckpoint):
    """Keeps a copy of every last.ckpt by its step."""

    def write(self, trainer):
        super().write(trainer)
        shutil.copy(self.last_model_path, self.folder / f"step{trainer.global_step}.copy")


class Draws(Callback):
    """Uses every generator in every step, as a user's augmentation might."""

    def __init__(self):
        self.drawn = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.drawn.append((random.random(), np.random.rand(), torch.rand(()).item(), batch.labels.tolist()))


class StopAt(Callback):
    def __init__(self, step: int, signum: int):
        self.step, self.signum = step, signum

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step + 1 == self.step:
            signal.raise_signal(self.signum)


def fit(folder: Path, encoder: str, source: Path, resume: Path | None = None, extra=(), lora=None, own=None, **options):
    seed_everything(3)
    best, last, logger, draws = BestCheckpoint(folder), EveryLast(folder), Points(), Draws()
    files = {"train_file": str(source / "train.tsv"), "validation_file": str(source / "dev.tsv")}
    given = {**files, **own} if own else {"source": str(source)}
    data = SentenceDataModule(encoder=encoder, batch_size=7, seed=3, **given)
    model = LoRAClassifier(encoder=encoder, task=data.task.name, label_names=data.label_names, lora=lora or {},
                           learning_rate=3e-3, schedule="linear", warmup_ratio=0.2)  # fmt: skip
    stopping = EarlyStopping("val/loss", patience=100)
    runner = Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, logger=logger, log_every_n_steps=2,
        callbacks=[ExactResume(), SavePoints(best, last, 1, None), best, last, draws, stopping, Throughput(),
                   LearningRateMonitor("step"), *extra],
        plugins=[WholeFileCheckpointIO()], **{"max_epochs": 3, **options},
    )  # fmt: skip
    runner.fit(model, data, ckpt_path=resume)
    return logger.points, draws.drawn


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def assert_same_end(whole: Path, resumed: Path) -> None:
    names = {path.name for path in resumed.glob("*.ckpt")}
    assert "last.ckpt" in names
    for name in names:  # a best from before the resume lies where it was written
        a, b = (read_checkpoint(folder / name) for folder in (whole, resumed))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", RESUME_KEY, "global_step", "epoch"):
            assert same(a[part], b[part]), (name, part)
        for callback, state in a["callbacks"].items():
            other = {key: value for key, value in b["callbacks"][callback].items() if "path" not in key}
            for key in other.keys() - {"dirpath", "best_k_models", "time_elapsed"}:
                assert same(state[key], other[key]), (name, callback, key)


CASES = {
    "plain": ({}, (1, 6, 7, 8, 20)),
    "accumulated": ({"accumulate_grad_batches": 2}, (4, 7)),
    "validation within the epoch": ({"val_check_interval": 2}, (2, 3)),
    "LoRA+": ({"lora": {"lr_ratio": 8}}, (8,)),
    "several labels": ({"own": {"task": "multilabel", "text_column": "sentence", "label_columns": ["label"]}}, (5,)),
    "limited": ({"limit_train_batches": 5, "check_val_every_n_epoch": 2}, (4, 5)),
}


@pytest.fixture(scope="module")
def whole(tiny_encoder, glue_folder, tmp_path_factory):
    """The run of a case that was never stopped: its folder, points and draws."""

    @functools.cache
    def run(case: str) -> tuple[Path, list, list]:
        folder = tmp_path_factory.mktemp("whole")
        return folder, *fit(folder, tiny_encoder(), glue_folder, **CASES[case][0])

    return run


@pytest.mark.faults
def test_resume_at_every_step_is_bit_identical(whole, tiny_encoder, glue_folder, tmp_path):
    resumes_exactly(whole("plain"), {}, range(1, 22), tiny_encoder, glue_folder, tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_resume_at_any_step_is_bit_identical(case, whole, tiny_encoder, glue_folder, tmp_path):
    resumes_exactly(whole(case), *CASES[case], tiny_encoder, glue_folder, tmp_path)


def resumes_exactly(whole, options, steps, tiny_encoder, glue_folder, tmp_path) -> None:
    undisturbed, points, drawn = whole
    for step in steps:
        folder, path = tmp_path / f"from{step}", undisturbed / f"step{step}.copy"
        stored = read_checkpoint(path)
        resumed, again = fit(folder, tiny_encoder(), glue_folder, resume=path, **options)
        if again:
            assert_same_end(undisturbed, folder)
        assert again == drawn[len(drawn) - len(again) :]
        assert stored["global_step"] == step
        at = stored[RESUME_KEY]["log_steps"]
        assert resumed == [point for point in points if point[0] >= at]
        assert len(drawn) - len(again) == stored["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"]


def test_max_steps_is_no_end_of_the_epoch(whole, tiny_encoder, glue_folder, tmp_path):
    """Stopped by max_steps within an epoch and resumed with more, a run trains on the rest of the epoch."""
    *_, drawn = whole("plain")
    _, first = fit(tmp_path / "part", tiny_encoder(), glue_folder, max_steps=10)
    _, second = fit(tmp_path / "rest", tiny_encoder(), glue_folder, resume=tmp_path / "part" / "last.ckpt")
    assert [labels for *_, labels in first + second] == [labels for *_, labels in drawn]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_ends_with_the_shells_code(
    signum, whole, tiny_encoder, glue_folder, tmp_path
):
    before = signal.getsignal(signum)
    options = {"accumulate_grad_batches": 2, "extra": [StopAt(5, signum)]}
    with pytest.raises(RunStopped) as stopped:
        fit(tmp_path / "run", tiny_encoder(), glue_folder, **options)
    assert (stopped.value.key, stopped.value.exit_code) == ("stopped", 128 + signum)
    assert signal.getsignal(signum) == before
    last = tmp_path / "run" / "last.ckpt"
    assert read_checkpoint(last)["global_step"] == 5
    fit(tmp_path / "run", tiny_encoder(), glue_folder, resume=last, accumulate_grad_batches=2)
    assert_same_end(whole("accumulated")[0], tmp_path / "run")


def test_slurm_puts_the_job_back(tiny_encoder, glue_folder, tmp_path, monkeypatch):
    called = tmp_path / "called"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {called}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, value in {"NTASKS": "1", "NTASKS_PER_NODE": "1", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(RunStopped):
        fit(tmp_path / "run", tiny_encoder(), glue_folder, extra=[StopAt(4, signal.SIGUSR1)])
    assert called.read_text() == "requeue 7\n"
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["global_step"] == 4


def test_two_runs_with_one_seed_are_bit_identical(whole, tiny_encoder, glue_folder, tmp_path):
    folder, *one = whole("plain")
    assert [*fit(tmp_path, tiny_encoder(), glue_folder)] == one
    assert_same_end(folder, tmp_path)


def test_generators_come_back():
    state = random_state()
    drawn = [(random.random(), np.random.rand(), torch.rand(()).item()) for _ in range(3)]
    set_random_state(state)
    assert drawn == [(random.random(), np.random.rand(), torch.rand(()).item()) for _ in range(3)]
