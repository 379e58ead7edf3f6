"""Resident memory over a run, side by side with PEFT: `python -m benchmarks.memory --output FILE`."""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from benchmarks.device import status
from benchmarks.peers import peft_step, random_encoder
from benchmarks.table import print_table
from benchmarks.training import OURS, SHARED
from lora_pl import LoRAClassifier, Run, SentenceDataModule
from lora_pl.encoder.dtype import BaseDtype

Memory = dict[int, float]
"""Resident MiB of a process by the number of finished steps."""
BATCH = 32


def lora_pl_run(encoder: str, steps: int, base_dtype: BaseDtype = "auto") -> Memory:
    """`lora_pl fit` in bf16-mixed."""
    resident, data = Resident(steps), _sst2(encoder)
    options = {"precision": "bf16-mixed", "limit_val_batches": 0, "enable_progress_bar": False}
    with tempfile.TemporaryDirectory() as folder:
        run = Run("memory", checkpoints=folder, logs=folder)
        run.fit(
            LoRAClassifier.for_data(data, base_dtype=base_dtype), data, max_steps=steps, callbacks=[resident], **options
        )
    return resident.found


def peft_run(encoder: str, steps: int, weights: torch.dtype) -> Memory:
    """PEFT in a plain loop on the same batches, padded to their longest."""
    resident, data = Resident(steps), _sst2(encoder)
    data.setup("fit")
    loader = data.train_dataloader()
    step = peft_step(encoder, "bfloat16", weights)
    for number, indices in enumerate(itertools.islice(loader.sampler, steps), 1):
        step(loader.dataset.tokens, indices)  # type: ignore[attr-defined]
        resident.note(number)
    return resident.found


RUNS: dict[str, Callable[[str, int], Memory]] = {
    OURS: lora_pl_run,
    "lora_pl, int8 base": partial(lora_pl_run, base_dtype="int8"),
    "PEFT, bf16 weights": partial(peft_run, weights=torch.bfloat16),
    "PEFT, fp32 weights, autocast": partial(peft_run, weights=torch.float32),
}


class Resident(Callback):
    """Notes the resident memory after 1, 10, 100, ... steps and after the last one."""

    def __init__(self, steps: int) -> None:
        self.steps, self.found = steps, Memory()

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Note it."""
        self.note(trainer.global_step)

    def note(self, step: int) -> None:
        """The memory now, if it is time."""
        if step == self.steps or str(step).strip("0") == "1":
            self.found[step] = status("VmRSS")


def measure(folder: Path, steps: int) -> dict[str, Memory]:
    """Every run's memory, each in a process of its own."""
    encoder, found = random_encoder(folder), {}
    for name, run in RUNS.items():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found[name] = pool.submit(run, encoder, steps).result()
    return found


def rows(encoder: str, found: dict[str, Memory]) -> Iterator[str]:
    """The table's lines for an encoder."""
    for name, memory in found.items():
        last = max(memory)
        share = found[OURS][last] / memory[last]
        shown = [f"{memory[step]:,.0f}" for step in sorted(memory)]
        yield f"| {' | '.join([encoder, name, *shown, f'{share:.2f}'])} |"


def _sst2(encoder: str) -> SentenceDataModule:
    return SentenceDataModule("sst2", source=str(SHARED / "glue" / "SST-2"), encoder=encoder, batch_size=BATCH)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", nargs="+", default=["roberta-base", "roberta-minilm"])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    noted = sorted({*(10**power for power in range(10) if 10**power <= args.steps), args.steps})
    columns = ["encoder", "what", *(f"MiB after {step:,}" for step in noted), "lora_pl's share"]
    header = f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}"
    parts = ([*rows(name, measure(SHARED / "models" / name, args.steps))] for name in args.encoders)
    print_table(header, parts, args.output)


if __name__ == "__main__":
    main()
