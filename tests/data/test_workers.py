import os
import signal
import subprocess

from torch.utils.data import DataLoader

from lora_pl.data.workers import obey_the_trainer


def test_a_worker_outlives_signals_to_the_group_but_not_its_trainers():
    batches = iter(DataLoader(range(100), num_workers=1, worker_init_fn=obey_the_trainer))
    next(batches)
    (worker,) = batches._workers
    for name in ("INT", "TERM"):
        subprocess.run(["/bin/sh", "-c", f"kill -{name} {worker.pid}"], check=True)
    for _ in range(50):
        next(batches)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(10)
    assert worker.exitcode == 0
