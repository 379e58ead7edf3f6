"""Trials over a local cluster of two workers; opt-in (pytest -m ray)."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lora_pl.ablation.grid import Trial
from lora_pl.ablation.ray_launcher import RayLauncher
from lora_pl.ablation.record import TrialResult
from lora_pl.ablation.study import Outcome, Unit
from tests.support import TIMES

pytestmark = pytest.mark.ray
UNITS: list[Unit] = [(Trial("LoRA", seed),) for seed in range(3)]


@dataclass(frozen=True)
class DiesOnce:
    """Ends its process the first time that it is given the trial of seed 1."""

    folder: Path

    def __call__(self, unit: Unit) -> list[Outcome]:
        died = self.folder / "died"
        if unit[0].seed == 1 and not died.exists():
            died.touch()
            os._exit(1)
        return [Outcome(trial, TrialResult([{"validation": trial.seed}])) for trial in unit]


def full_disk(unit: Unit) -> list[Outcome]:
    raise OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def _workers_find_this_module(monkeypatch):
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )


def test_a_lost_workers_trial_is_run_again(tmp_path):
    outcomes = [outcome for outcomes in RayLauncher(2)(UNITS, DiesOnce(tmp_path)) for outcome in outcomes]
    assert (tmp_path / "died").exists()
    assert sorted(outcome.trial.seed for outcome in outcomes) == [0, 1, 2]
    assert all(outcome.result.epochs == [{"validation": outcome.trial.seed}] for outcome in outcomes)


def test_a_full_disk_reaches_the_study():
    with pytest.raises(OSError, match="No space left"):
        list(RayLauncher(2)(UNITS, full_disk))


def test_two_workers_make_the_table_that_one_process_makes(tiny_encoder, glue_folder, tmp_path):
    flags = ["--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--ranks", "1", "4", "--seeds", "2"]
    flags += ["--trainer.max_epochs", "2", "--pack", "1"]
    tables = []
    for launcher in ("local", "ray"):
        command = [sys.executable, "-m", "lora_pl", "ablate", *flags, "--launcher", launcher, "--output", launcher]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr
        rows = pq.read_table(tmp_path / launcher / "table.parquet").to_pylist()
        tables.append([{key: value for key, value in row.items() if key not in TIMES} for row in rows])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 8
