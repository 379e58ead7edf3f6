"""A run that is killed at any moment, again and again, ends as if nothing had happened."""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from lora_pl.storage.checkpoint import read_checkpoint
from tests.training.test_exact_resume import assert_same_end

BETWEEN_RENAMES = "between renames"
IN_A_WRITE = "in a write"


def fork_server() -> multiprocessing.context.BaseContext:
    """Starts a run within a second: the imports are done once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lora_pl.cli.trainer", "tests.faults.test_kills"])
    return context


def run(folder: str, arguments: list[str], harm: str | None, after: int) -> None:
    """`lora_pl ARGUMENTS` in `folder`; with `harm`, the process kills itself at the `after`-th chance."""
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.stderr = open("stderr.txt", "a", encoding="utf-8")  # noqa: SIM115
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
    from lora_pl.cli.main import main

    sys.exit(main(arguments))


def command(encoder: str, source: Path, epochs: int) -> list[str]:
    return [
        "fit", "--model.encoder", encoder, "--data.source", str(source), "--data.batch_size", "7", "--run_name", "run",
        "--resume", "--save_every_steps", "5", "--trainer.max_epochs", str(epochs), "--trainer.precision", "32-true",
        "--trainer.check_val_every_n_epoch", "3", "--model.schedule", "linear", "--model.learning_rate", "3e-3",
    ]  # fmt: skip


def live(context, folder: Path, arguments: list[str], harm=None, after=1, seconds: float | None = None) -> int | None:
    """One life of a run: its exit code, negative for the signal that killed it."""
    process = context.Process(target=run, args=(str(folder), arguments, harm, after))
    process.start()
    process.join(seconds)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode


def killed_run(folder: Path, kills: int, epochs: int, encoder: str, source: Path) -> None:
    """Compare a run that is killed `kills` times with one that is not."""
    context, rng = fork_server(), random.Random(kills)
    arguments = command(encoder, source, epochs)
    (folder / "whole").mkdir()
    started = time.monotonic()
    assert live(context, folder / "whole", arguments) == 0
    longest = time.monotonic() - started
    done, runs = 0, 0
    while done < kills:
        cwd = folder / f"run{(runs := runs + 1)}"
        cwd.mkdir()
        code: int | None = None
        while code != 0:
            harm = rng.choice([None, IN_A_WRITE, BETWEEN_RENAMES]) if done < kills else None
            seconds = rng.uniform(0.3, longest) if done < kills and harm is None else None
            code = live(context, cwd, arguments, harm, rng.randint(1, 8), seconds)
            assert code in (0, -signal.SIGKILL), (cwd / "stderr.txt").read_text()
            done += code != 0
        run_folder = cwd / "checkpoints" / "run"
        assert {path.name for path in run_folder.iterdir()} == {"best.ckpt", "last.ckpt", "config.yaml"}
        assert_same_end(folder / "whole" / "checkpoints" / "run", run_folder)


def test_a_few_kills(tiny_encoder, glue_folder, tmp_path):
    killed_run(tmp_path, 3, 4, tiny_encoder(), glue_folder)


@pytest.mark.faults
def test_thirty_kills(tiny_encoder, glue_folder, tmp_path):
    killed_run(tmp_path, 30, 40, tiny_encoder(), glue_folder)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tiny_encoder, glue_folder, tmp_path):
    context = fork_server()
    arguments = command(tiny_encoder(), glue_folder, 3)
    for name in ("whole", "run"):
        (tmp_path / name).mkdir()
    assert live(context, tmp_path / "whole", arguments) == 0
    assert live(context, tmp_path / "run", arguments, IN_A_WRITE, 4) == -signal.SIGKILL
    folder = tmp_path / "run" / "checkpoints" / "run"
    last, previous = folder / "last.ckpt", folder / "previous.ckpt"
    assert read_checkpoint(previous)["global_step"] < read_checkpoint(last)["global_step"]
    content = bytearray(last.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2048] = b"\xaa" * 2048
    last.write_bytes(content)
    assert live(context, tmp_path / "run", arguments) == 0
    said = (tmp_path / "run" / "stderr.txt").read_text()
    assert "last.ckpt: " in said
    assert "resume: checkpoints/run/previous.ckpt" in said
    assert_same_end(tmp_path / "whole" / "checkpoints" / "run", folder)
