"""What being resumable costs per training step: `python -m benchmarks.resume_cost`.

The same steps with and without the callbacks that make a run resumable, in turn; and the time of a save.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback

from benchmarks.device import CPU
from lora_pl import LoRAClassifier, SentenceDataModule
from lora_pl.encoder import EMBEDDED
from lora_pl.model.precision import default_precision
from lora_pl.storage.checkpoint_io import WholeFileCheckpointIO
from lora_pl.training.resume.exact_resume import ExactResume
from lora_pl.training.resume.saving import BestCheckpoint, LastCheckpoint, SavePoints

WARM_UP = 5
"""Steps that are not timed."""


def run(
    encoder: str, folder: Path, steps: int, resumable: bool, every_steps: int | None = None
) -> tuple[list[float], list[float]]:
    """Seconds per step, without the first ones, and per save."""
    ends: list[float] = []
    saves: list[float] = []
    best, last = BestCheckpoint(folder), LastCheckpoint(folder)
    save = last.write
    last.write = lambda trainer: saves.append(CPU.seconds(lambda: save(trainer)))
    clock = LambdaCallback(on_train_batch_end=lambda *given: ends.append(time.perf_counter()))
    saving = [ExactResume(), SavePoints(best, last, every_steps, None), best, last]
    trainer = Trainer(
        accelerator="cpu", precision=default_precision("cpu"), max_steps=steps, limit_val_batches=0, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=resumable,
        plugins=[WholeFileCheckpointIO()], callbacks=[*(saving if resumable else []), clock],
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(LoRAClassifier(encoder=encoder), SentenceDataModule(source="sample", encoder=encoder))
    return [after - before for before, after in pairwise(ends[WARM_UP:])], saves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default=EMBEDDED)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.rounds < 1 or args.steps < WARM_UP + 2:
        parser.error(f"expected --rounds of at least 1 and --steps of at least {WARM_UP + 2}, as {WARM_UP} warm up")
    plain: list[float] = []
    resumable: list[float] = []
    saves: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        for _ in range(args.rounds):
            plain += run(args.encoder, Path(name), args.steps, False)[0]
            resumable += run(args.encoder, Path(name), args.steps, True)[0]
            saves += run(args.encoder, Path(name), args.steps, True, 10)[1]
    without, with_ = median(plain) * 1e3, median(resumable) * 1e3
    print(f"median step without {without:.3f} ms, resumable {with_:.3f} ms ({100 * (with_ / without - 1):+.2f}%)")
    print(f"median save {median(saves) * 1e3:.2f} ms, with fsync")


if __name__ == "__main__":
    main()
