"""Memory and step time of a whole run, beside PEFT's: `python -m benchmarks.memory --output FILE`."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback

from benchmarks.device import CPU, status
from benchmarks.peers import peft_step, random_encoder
from benchmarks.table import print_table
from benchmarks.training import OURS, SHARED
from lora_pl import LoRAClassifier, Run, SentenceDataModule
from lora_pl.encoder.dtype import BaseDtype

BATCH = 32


class Measured(NamedTuple):
    """What a process took: its resident MiB by the number of finished steps, and a step's median time in ms."""

    memory: dict[int, float]
    step: float


def lora_pl_run(encoder: str, steps: int, base_dtype: BaseDtype = "auto") -> Measured:
    """`lora_pl fit` in bf16-mixed."""
    noted, data = Noted(steps), _sst2(encoder)
    options = {"precision": "bf16-mixed", "limit_val_batches": 0, "enable_progress_bar": False}
    with tempfile.TemporaryDirectory() as folder:
        run = Run("memory", checkpoints=folder, logs=folder)
        run.fit(
            LoRAClassifier.for_data(data, base_dtype=base_dtype), data, max_steps=steps, callbacks=[noted], **options
        )
    return noted.measured()


def peft_run(encoder: str, steps: int, weights: torch.dtype) -> Measured:
    """PEFT in a plain loop on the same batches, padded to their longest."""
    noted, data = Noted(steps), _sst2(encoder)
    data.setup("fit")
    loader = data.train_dataloader()
    step = peft_step(encoder, "bfloat16", weights)
    for number, indices in enumerate(itertools.islice(loader.sampler, steps), 1):
        step(loader.dataset.tokens, indices)  # type: ignore[attr-defined]
        noted.note(number)
    return noted.measured()


RUNS: dict[str, Callable[[str, int], Measured]] = {
    OURS: lora_pl_run,
    "lora_pl, int8 base": partial(lora_pl_run, base_dtype="int8"),
    "PEFT, bf16 weights": partial(peft_run, weights=torch.bfloat16),
    "PEFT, fp32 weights, autocast": partial(peft_run, weights=torch.float32),
}


class Noted(Callback):
    """Notes every step's time, and the resident memory after 1, 10, 100, ... steps and after the last one."""

    def __init__(self, steps: int) -> None:
        self.steps, self.memory, self.times = steps, dict[int, float](), list[float]()

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Note it."""
        self.note(trainer.global_step)

    def note(self, step: int) -> None:
        """The time now, and the memory where it is wanted."""
        self.times.append(time.perf_counter())
        if step == self.steps or str(step).strip("0") == "1":
            self.memory[step] = status("VmRSS")

    def measured(self) -> Measured:
        """All of it."""
        return Measured(self.memory, 1000 * median(after - before for before, after in itertools.pairwise(self.times)))


def measure(folder: Path, steps: int, only: Sequence[str] = tuple(RUNS)) -> dict[str, Measured]:
    """Every run, each in a process of its own."""
    encoder, found = random_encoder(folder), {}
    for name, run in RUNS.items():
        if name not in only or not CPU.can_run(name):
            continue
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found[name] = pool.submit(run, encoder, steps).result()
    return found


def rows(encoder: str, found: dict[str, Measured]) -> Iterator[str]:
    """The table's lines for an encoder."""
    ours = found[OURS]
    for name, (memory, step) in found.items():
        last = max(memory)
        shares = [f"{ours.memory[last] / memory[last]:.2f}", f"{step:,.0f}", f"{step / ours.step:.2f}"]
        yield f"| {' | '.join([encoder, name, *(f'{memory[noted]:,.0f}' for noted in sorted(memory)), *shares])} |"


def _sst2(encoder: str) -> SentenceDataModule:
    return SentenceDataModule("sst2", source=str(SHARED / "glue" / "SST-2"), encoder=encoder, batch_size=BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", nargs="+", default=["roberta-base", "roberta-minilm"])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=[*RUNS], metavar="RUN", help="these and lora_pl")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    noted = sorted({*(10**power for power in range(10) if 10**power <= args.steps), args.steps})
    memory = [f"MiB after {step:,}" for step in noted]
    columns = ["encoder", "what", *memory, "lora_pl's share", "ms a step", "speed-up"]
    header = f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}"
    parts = ([*rows(name, measure(SHARED / "models" / name, args.steps, [OURS, *args.only]))] for name in args.encoders)
    print_table(header, parts, args.output)


if __name__ == "__main__":
    main()
