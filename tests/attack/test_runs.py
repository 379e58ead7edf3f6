"""Runs under attack: resumed exactly or refused, one process at a time, names, leftovers, log points."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lora_pl import LoRAClassifier, Run, SentenceDataModule
from lora_pl.data import datamodule
from lora_pl.data.batches import TokenDataset
from lora_pl.data.samplers import SummedSeedBatches
from lora_pl.errors import UserError
from lora_pl.reporting import silence
from lora_pl.storage.checkpoint import read_checkpoint
from lora_pl.training import run_log
from lora_pl.training.resume.exact_resume import RESUME_KEY
from lora_pl.training.run_folder import require_name
from lora_pl.training.run_lock import run_lock
from lora_pl.training.trainer import make_trainer
from tests.training.test_exact_resume import assert_same_end

BATCHES = 7
"""Of an epoch."""


class Killed(Exception):
    pass


class KilledAt(Callback):
    """Ends a run in the middle of a step, where nothing is saved."""

    def __init__(self, step: int):
        self.step = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step + 1 == self.step:
            raise Killed


class Hooks(Callback):
    """A user's callback that counts every call."""

    def __init__(self):
        self.calls = {}

    def count(self, name):
        self.calls[name] = self.calls.get(name, 0) + 1

    def on_train_epoch_start(self, trainer, pl_module):
        self.count("epoch start")

    def on_train_epoch_end(self, trainer, pl_module):
        self.count("epoch end")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.count("batch start")

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.count("validation end")

    def state_dict(self):
        return dict(self.calls)

    def load_state_dict(self, state_dict):
        self.calls = dict(state_dict)


@pytest.fixture
def source(glue_folder, tmp_path) -> Path:
    """Training and validation files that a test may change."""
    return Path(shutil.copytree(glue_folder, tmp_path / "SST-2"))


@pytest.fixture
def encoder(tiny_encoder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_encoder(), tmp_path / "encoder"))


@pytest.fixture
def fit(encoder, source):
    """`Run(NAME).fit`, with a checkpoint after every step, killed at the step `killed` if there is one."""

    def run(name: str, callbacks=(), killed: int | None = None, force: bool = False, every: int = 1, **options) -> Run:
        data = SentenceDataModule(source=str(source), encoder=str(encoder), batch_size=BATCHES, seed=3)
        own = [make() for make in callbacks] + ([KilledAt(killed)] if killed else [])
        made = Run(name, resume=True, force=force, save_every_steps=every, save_every_minutes=None)
        defaults = {"max_epochs": 3, "precision": "32-true", "accelerator": "cpu", "enable_progress_bar": False}
        with silence():
            model = LoRAClassifier.for_data(data, learning_rate=3e-3, schedule="linear", warmup_ratio=0.2)
            made.fit(model, data, **{**defaults, "log_every_n_steps": 1, "callbacks": own, **options})
        return made

    def lives(name: str, *killed: int, **options) -> Run:
        for step in killed:
            with pytest.raises(Killed):
                run(name, killed=step, **options)
        return run(name, **options)

    run.lives = lives
    return run


def key_of(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    return error.value.key


EXACT = {
    "a callback with a state, accumulated": {
        "callbacks": [Hooks, lambda: GradientAccumulationScheduler({0: 1, 1: 3})],
        "reload_dataloaders_every_n_epochs": 2,
    },
    "EarlyStopping by an older validation": {
        "callbacks": [
            lambda: EarlyStopping("val/loss", strict=False, mode="max", patience=1, check_on_train_epoch_end=True)
        ],
        "check_val_every_n_epoch": 2,
        "max_epochs": 5,
    },
    "EarlyStopping": {"callbacks": [lambda: EarlyStopping("val/loss", mode="max", patience=1)], "max_epochs": 5},
    "EarlyStopping before min_epochs": {
        "callbacks": [lambda: EarlyStopping("val/loss", stopping_threshold=100.0)],
        "max_epochs": 5,
        "min_epochs": 3,
    },
    "ModelCheckpoint": {
        "callbacks": [lambda: ModelCheckpoint("own", every_n_train_steps=2, save_top_k=-1, save_last=True)]
    },
    "limit_train_batches": {"limit_train_batches": 5, "limit_val_batches": 1},
    "val_check_interval over epochs": {"val_check_interval": 5, "check_val_every_n_epoch": None},
    "accumulate_grad_batches": {"accumulate_grad_batches": 3, "val_check_interval": 2},
    "gradient_clip_val": {"gradient_clip_val": 0.1},
    "max_time": {"max_time": "00:01:00:00"},
    "bf16-mixed": {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[] if number < 2 else pytest.mark.attack) for number, case in enumerate(EXACT)],
)
@pytest.mark.parametrize(
    "steps",
    [(9,), pytest.param((2, 5, 8), marks=pytest.mark.attack), pytest.param((3, 4, 7), marks=pytest.mark.attack)],
)
def test_a_feature_of_lightning_is_resumed_exactly(case, steps, fit):
    whole = fit("whole", **EXACT[case])
    end = read_checkpoint(whole.last_checkpoint)["global_step"]
    resumed = fit.lives("killed", *(step for step in steps if step <= end), **EXACT[case])
    assert_same_end(whole.folder, resumed.folder)
    fit("killed", **EXACT[case])  # which has ended
    assert_same_end(whole.folder, resumed.folder)


REFUSED = {
    "LearningRateFinder": lambda: LearningRateFinder(),
    "BatchSizeFinder": lambda: BatchSizeFinder(),
    "StochasticWeightAveraging": lambda: StochasticWeightAveraging(1e-2),
    "EMAWeightAveraging": lambda: EMAWeightAveraging(),
    "BackboneFinetuning": lambda: BackboneFinetuning(),
    "ModelPruning": lambda: ModelPruning("l1_unstructured", amount=0.5),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_callback_whose_model_no_checkpoint_holds_is_refused(case):
    options = {"accelerator": "cpu", "logger": False, "callbacks": REFUSED[case]()}
    assert key_of(make_trainer, options) == "trainer.callbacks"


def test_a_run_with_such_a_feature_starts_and_is_not_resumed(fit):
    last = fit("mine", overfit_batches=5, max_epochs=1).last_checkpoint
    assert key_of(fit, "mine", overfit_batches=5, max_epochs=1) == "resume"
    fit("mine", overfit_batches=5, max_epochs=2, force=True)
    assert read_checkpoint(last)["global_step"] == 10


def change_a_line(path: Path) -> None:
    path.write_text(path.read_text().replace("good", "bad", 1))


def change_a_label(path: Path) -> None:
    path.write_text(path.read_text().replace("\t1", "\t0", 1))


def drop_a_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def more_dropout(path: Path) -> None:
    path.write_text(path.read_text().replace('"hidden_dropout_prob": 0.1', '"hidden_dropout_prob": 0.2'))


def other_activation(path: Path) -> None:
    path.write_text(path.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))


def other_tokens(path: Path) -> None:
    path.write_text(path.read_text().replace('"good"', '"x"').replace('"bad"', '"good"').replace('"x"', '"bad"'))


CHANGES = [
    ("SST-2/train.tsv", change_a_line),
    ("SST-2/train.tsv", change_a_label),
    ("SST-2/train.tsv", drop_a_line),
    ("SST-2/dev.tsv", change_a_line),
    ("SST-2/dev.tsv", drop_a_line),
    ("encoder/config.json", more_dropout),
    ("encoder/config.json", other_activation),
    ("encoder/tokenizer.json", other_tokens),
]


def test_changed_data_and_a_changed_encoder_are_refused(fit, tmp_path):
    with pytest.raises(Killed):
        fit("mine", killed=4, max_epochs=1)
    for file, change in CHANGES:
        before = (tmp_path / file).read_text()
        change(tmp_path / file)
        assert (tmp_path / file).read_text() != before
        assert key_of(fit, "mine", max_epochs=1) in ("resume", "checkpoint.base"), change
        (tmp_path / file).write_text(before)
    fit("mine", max_epochs=1)


def test_changed_data_are_taken_by_force(fit, source):
    with pytest.raises(Killed):
        fit("mine", killed=4, max_epochs=2)
    drop_a_line(source / "train.tsv")
    assert read_checkpoint(fit("mine", force=True, max_epochs=2).last_checkpoint)["epoch"] == 1


def other_saved(path: Path, **changes) -> None:
    """A checkpoint that says something else of itself, as if saved so."""
    checkpoint = torch.load(path, weights_only=True)
    saved = checkpoint[RESUME_KEY]
    checkpoint[RESUME_KEY] = {**saved, **changes}
    torch.save(checkpoint, path)


def test_other_processes_another_device_and_the_middle_of_a_step_are_refused(fit):
    last = fit("mine", max_epochs=1).last_checkpoint
    saved = read_checkpoint(last)[RESUME_KEY]
    for changes in (
        {"conditions": {**saved["conditions"], "the number of processes": 2}},
        {"conditions": {}, "processes": saved["processes"] * 2},
        {"conditions": {**saved["conditions"], "the device": "cuda"}},
        {"conditions": {**saved["conditions"], "the callbacks with a state": ["Hooks"]}},
        {"between_steps": False},
    ):
        other_saved(last, **{**saved, **changes})
        assert key_of(fit, "mine", max_epochs=1) == "resume"


def test_a_callback_whose_state_would_be_lost_is_missed(fit):
    fit("mine", callbacks=[Hooks], max_epochs=1)
    assert key_of(fit, "mine", max_epochs=1) == "resume"
    fit("mine", callbacks=[Hooks, lambda: ModelCheckpoint("own")], max_epochs=1)


def test_runs_of_earlier_versions_keep_their_order(fit, monkeypatch):
    """0.2.0 seeded with seed + epoch and filled no rows; its checkpoints say neither, and hold the loss as a
    MeanMetric of torchmetrics."""
    with monkeypatch.context() as patch:
        patch.setitem(datamodule.ORDERS, "hashed", SummedSeedBatches)
        patch.setattr(datamodule, "TokenDataset", lambda *given: TokenDataset(*given[:3], fills=False))
        whole = fit("whole")
        with pytest.raises(Killed):
            fit("killed", killed=10)
    path = Path("checkpoints/killed/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    old = {key: checkpoint[RESUME_KEY][key] for key in ("epoch", "batch", "log_steps", "processes")}
    own = old["processes"][0]
    mean = {"mean_value": torch.tensor(14.0), "weight": torch.tensor(21.0)}
    own["sums"] = {"loss": (3, mean), "accuracy": own["sums"][0]["accuracy"]}
    torch.save({**checkpoint, RESUME_KEY: old}, path)
    assert old["batch"]
    resumed = fit.lives("killed", 12)
    a, b = (read_checkpoint(run.last_checkpoint) for run in (whole, resumed))
    assert all(torch.equal(b["state_dict"][key], tensor) for key, tensor in a["state_dict"].items())
    assert (b[RESUME_KEY]["order"], b[RESUME_KEY]["fills"]) == ("summed", False)


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_in_use_is_refused_until_its_process_dies(fit):
    Path("checkpoints").mkdir()
    command = [sys.executable, "-c", HOLD, "checkpoints/.mine.lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        assert key_of(fit, "mine", max_epochs=1) == "run_name"
        assert not Path("checkpoints/mine").exists()
        assert not Path("logs").exists()
        holder.send_signal(signal.SIGKILL)
    fit("mine", max_epochs=1)
    fit("mine", max_epochs=1)  # as a notebook's cell


def test_a_lock_is_of_one_thread_and_one_run():
    refused = []

    def other() -> None:
        with run_lock(Path("c/other")):
            refused.append(key_of(run_lock(Path("c/mine")).__enter__))

    with run_lock(Path("c/mine")), run_lock(Path("c/mine").absolute()):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused == ["run_name"]
    with run_lock(Path("c/mine")):
        pass


def test_a_folder_of_any_spelling_has_a_lock(monkeypatch):
    Path("c").mkdir()
    monkeypatch.chdir("c")
    with run_lock(Path()):
        assert Path("../.c.lock").is_file()
    assert key_of(run_lock(Path("/")).__enter__) == "run_name"


def test_other_processes_of_the_same_run_take_no_lock(monkeypatch):
    with run_lock(Path("c/mine")):
        for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK", "OMPI_COMM_WORLD_RANK"):
            with monkeypatch.context() as patch:
                patch.setenv(name, "1")
                thread = threading.Thread(target=run_lock(Path("c/mine")).__enter__)
                thread.start()
                thread.join()


def test_a_trainer_that_a_run_gave_away_locks_it(encoder, source):
    def fit_in_a_thread() -> None:
        keys.append(key_of(trainer.fit, model, data))

    keys: list[str] = []
    data = SentenceDataModule(source=str(source), encoder=str(encoder), batch_size=BATCHES)
    model = LoRAClassifier.for_data(data)
    trainer = Run("mine").trainer(max_steps=2, precision="32-true", accelerator="cpu", logger=False)
    with run_lock(Path("checkpoints/mine")):
        thread = threading.Thread(target=fit_in_a_thread)
        thread.start()
        thread.join()
    assert keys == ["run_name"]
    trainer.fit(model, data)
    with run_lock(Path("checkpoints/mine")):
        pass


def test_leftovers_of_a_killed_process_with_this_number_do_not_stay(fit):
    """In a container a restarted process often has the number of the one before."""
    folder = Path("checkpoints/mine")
    folder.mkdir(parents=True)
    for name in ("best.ckpt", "last.ckpt", "previous.ckpt", "config.yaml"):
        (folder / f".{name}.{os.getpid()}").write_text("half")
    fit.lives("mine", 3)
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt", "config.yaml"}


def points(name: str) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run, less measured speeds."""
    shown = EventAccumulator(f"logs/{name}", size_guidance={"scalars": 0})
    shown.Reload()
    tags = [tag for tag in shown.Tags()["scalars"] if not tag.startswith("throughput/")]
    return {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize("lives", [(3, 2), pytest.param((3, 3, 2, 12, 13, 15, 20, 21), marks=pytest.mark.attack)])
def test_tensorboard_shows_the_surviving_points_alone(lives, fit, monkeypatch):
    """The first lives are killed before their first checkpoint."""
    monkeypatch.setattr(run_log, "time", time)  # a resumed run waits here
    fit("whole", every=4)
    fit.lives("killed", *lives, every=4)
    assert points("killed") == points("whole")


@settings(max_examples=50)
@given(st.text(max_size=80))
def test_a_name_is_refused_or_a_folders(name):
    refused = None
    try:
        require_name(name)
    except UserError as error:
        refused = error
    if refused is not None:
        assert (refused.key, str(refused).isprintable()) == ("run_name", True)
    else:
        assert Path("checkpoints", name).parent == Path("checkpoints")
        assert name.isprintable()
        assert len(os.fsencode(f".{name}.lock")) < 255


@pytest.mark.parametrize("name", ["", " ", ".", "..", ".x", "a/b", "a\\b", "a\n", "\x1b[31m", "\x00", "x" * 201])
def test_names_that_are_refused(name):
    assert key_of(Run, name) == "run_name"
