"""A run that is killed at any moment, again and again, ends as if nothing had happened."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from lora_pl.storage.checkpoint import read_checkpoint
from tests.processes import ERR, command, start
from tests.training.test_exact_resume import assert_same_end

BETWEEN_RENAMES = "between renames"
IN_A_WRITE = "in a write"


def run(arguments: list[str], harm: str | None, after: int) -> int:
    """`lora_pl ARGUMENTS`; with `harm`, the process kills itself at the `after`-th chance."""
    save, replace, count = torch.save, os.replace, 0

    def kill() -> None:
        nonlocal count
        count += 1
        if count >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    def save_half(checkpoint, file):
        file.write(b"PK\x03\x04 half of it")
        file.flush()
        kill()
        file.seek(0)
        file.truncate()
        save(checkpoint, file)

    def replace_one(source, target):
        replace(source, target)
        if str(target).endswith(".ckpt"):
            kill()

    if harm == IN_A_WRITE:
        torch.save = save_half
    if harm == BETWEEN_RENAMES:
        os.replace = replace_one
    return command(*arguments)


def arguments_of(encoder: str, source: Path, epochs: int) -> list[str]:
    return [
        "fit", "--model.encoder", encoder, "--data.source", str(source), "--data.batch_size", "7", "--run_name", "run",
        "--resume", "--save_every_steps", "5", "--trainer.max_epochs", str(epochs), "--trainer.precision", "32-true",
        "--trainer.check_val_every_n_epoch", "3", "--model.schedule", "linear", "--model.learning_rate", "3e-3",
    ]  # fmt: skip


def live(folder: Path, arguments: list[str], harm=None, after=1, seconds: float | None = None) -> int | None:
    """One life of a run: its exit code, negative for the signal that killed it."""
    process = start(folder, run, arguments, harm, after)
    process.join(seconds)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode


def killed_run(folder: Path, kills: int, epochs: int, encoder: str, source: Path) -> None:
    """Compare a run that is killed `kills` times with one that is not."""
    rng = random.Random(kills)
    arguments = arguments_of(encoder, source, epochs)
    (folder / "whole").mkdir()
    started = time.monotonic()
    assert live(folder / "whole", arguments) == 0
    longest = time.monotonic() - started
    done, runs = 0, 0
    while done < kills:
        cwd = folder / f"run{(runs := runs + 1)}"
        cwd.mkdir()
        code: int | None = None
        while code != 0:
            harm = rng.choice([None, IN_A_WRITE, BETWEEN_RENAMES]) if done < kills else None
            seconds = rng.uniform(0.3, longest) if done < kills and harm is None else None
            code = live(cwd, arguments, harm, rng.randint(1, 8), seconds)
            assert code in (0, -signal.SIGKILL), (cwd / ERR).read_text()
            done += code != 0
        run_folder = cwd / "checkpoints" / "run"
        left = {path.name for path in run_folder.iterdir()}
        assert left == {"best.ckpt", "last.ckpt", "config.yaml", "confusion.png"}
        assert_same_end(folder / "whole" / "checkpoints" / "run", run_folder)


def test_a_few_kills(tiny_encoder, glue_folder, tmp_path):
    killed_run(tmp_path, 3, 4, tiny_encoder(), glue_folder)


@pytest.mark.faults
def test_thirty_kills(tiny_encoder, glue_folder, tmp_path):
    killed_run(tmp_path, 30, 40, tiny_encoder(), glue_folder)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tiny_encoder, glue_folder, tmp_path):
    arguments = arguments_of(tiny_encoder(), glue_folder, 3)
    for name in ("whole", "run"):
        (tmp_path / name).mkdir()
    assert live(tmp_path / "whole", arguments) == 0
    assert live(tmp_path / "run", arguments, IN_A_WRITE, 4) == -signal.SIGKILL
    folder = tmp_path / "run" / "checkpoints" / "run"
    last, previous = folder / "last.ckpt", folder / "previous.ckpt"
    assert read_checkpoint(previous)["global_step"] < read_checkpoint(last)["global_step"]
    content = bytearray(last.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2048] = b"\xaa" * 2048
    last.write_bytes(content)
    assert live(tmp_path / "run", arguments) == 0
    said = (tmp_path / "run" / ERR).read_text()
    assert "last.ckpt: " in said
    assert "resume: checkpoints/run/previous.ckpt" in said
    assert_same_end(tmp_path / "whole" / "checkpoints" / "run", folder)
