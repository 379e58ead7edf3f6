"""A training step side by side with peers: `python -m tests.benchmarks.training --output FILE`."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from lora_pl.callbacks.throughput import measured_peak, step_products
from lora_pl.classifier import LoRAClassifier
from lora_pl.data.batches import make_batch
from lora_pl.data.sources import read_split
from lora_pl.data.tasks import get_task
from lora_pl.data.tokens import Tokens, tokenize_cached
from lora_pl.encoder.loading import load_tokenizer
from tests.benchmarks.peers import Step, full_step, lora_pl_step, peak_memory, peft_step, random_encoder, seed_step

SHARED = Path(__file__).resolve().parents[3] / "shared"
OURS = "lora_pl"
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
PEERS: dict[str, dict[str, Callable[[str], Step]]] = {
    "bf16": {
        OURS: partial(lora_pl_step, dtype="bfloat16"),
        "lora_pl, padded": partial(lora_pl_step, dtype="bfloat16", batching="padded"),
        "PEFT, bf16 weights": partial(peft_step, dtype="bfloat16", weights=torch.bfloat16),
        "PEFT, fp32 weights, autocast": partial(peft_step, dtype="bfloat16"),
        "PEFT, its default fp32": partial(peft_step, dtype="float32"),
        "the seed's recipe": partial(seed_step, dtype="bfloat16"),
        "full fine-tuning": partial(full_step, dtype="bfloat16"),
    },
    "fp32": {
        OURS: partial(lora_pl_step, dtype="float32"),
        "PEFT": partial(peft_step, dtype="float32"),
        "the seed's recipe": partial(seed_step, dtype="float32"),
    },
}


def sst2(encoder: str) -> Tokens:
    """SST-2's training sentences, cut at 64 tokens."""
    examples = read_split(str(SHARED / "glue" / "SST-2"), get_task("sst2"), "train")
    return tokenize_cached(load_tokenizer(encoder), examples, 64, Path(tempfile.gettempdir()) / "lora_pl_benchmark")


def interleaved(steps: dict[str, Step], tokens: Tokens, batches: Sequence[Sequence[int]]) -> dict[str, float]:
    """Median seconds per step of each peer, all on the same batches in turn, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for indices in batches:
        for name, step in steps.items():
            started = time.perf_counter()
            step(tokens, indices)
            seconds[name].append(time.perf_counter() - started)
    return {name: median(values[2:]) for name, values in seconds.items()}


def share_of_peak(encoder: str, dtype: str, tokens: Tokens, batches: Sequence[Sequence[int]], seconds: float) -> float:
    """What part of a lora_pl step is the time that its linear layers' products would take at the measured peak."""
    model = LoRAClassifier(encoder=encoder, base_dtype=dtype)
    packed = [make_batch(tokens, indices, "packed", 0) for indices in batches]
    products = median(step_products(model, batch) for batch in packed)
    peak = measured_peak(model.encoder, getattr(torch, dtype), int(median(batch.tokens for batch in packed)))
    return products / peak / seconds


def measure(folder: Path, precision: str, batch_size: int, rounds: int, memory: bool) -> list[str]:
    """The rows of one encoder, precision and batch size."""
    encoder = random_encoder(folder, Path(tempfile.gettempdir()) / f"lora_pl_benchmark_{folder.name}")
    tokens = sst2(encoder)
    draw = np.random.default_rng(0)
    batches = [draw.choice(len(tokens), batch_size, replace=False).tolist() for _ in range(rounds + 2)]
    makers = {name: partial(make, encoder) for name, make in PEERS[precision].items()}
    peaks = {name: peak_memory(make, tokens, batches[:4]) for name, make in makers.items()} if memory else {}
    seconds = interleaved({name: make() for name, make in makers.items()}, tokens, batches)
    share = share_of_peak(encoder, DTYPES[precision], tokens, batches, seconds[OURS])
    rows = []
    for name, value in seconds.items():
        peak = f"{peaks[name]:,.0f} | {peaks[OURS] / peaks[name]:.2f}" if peaks else " | "
        rows.append(
            f"| {folder.name} | {precision} | {batch_size} | {name} | {batch_size / value:.1f} "
            f"| {value / seconds[OURS]:.2f} | {peak} | {f'{share:.0%}' if name == OURS else ''} |"
        )
    return rows


HEADER = """\
| encoder | precision | batch | what | sentences/s | lora_pl is faster by | peak MiB | lora_pl's share | of peak speed |
| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |"""


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", nargs="+", default=["roberta-base", "roberta-minilm"])
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[8, 32, 128])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    rows = [HEADER]
    print(HEADER, flush=True)
    for name in args.encoders:
        for precision in args.precisions:
            for size in args.batch_sizes:
                found = measure(SHARED / "models" / name, precision, size, args.rounds, memory=size == 32)
                print("\n".join(found), flush=True)
                rows += found
    if args.output:
        args.output.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
