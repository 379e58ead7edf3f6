"""A training step of K joint trials beside a step of one alone: `python -m benchmarks.ablation --output FILE`."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.device import CPU, Device
from benchmarks.peers import Step, lora_pl_step, peak_memory, random_encoder, step_and_peak
from benchmarks.table import print_table
from benchmarks.timing import interleaved
from benchmarks.training import shape, training_tokens
from lora_pl import LoRAClassifier
from lora_pl.ablation.grid import Trial
from lora_pl.ablation.joint import JointTrials
from lora_pl.data.batches import make_batch
from lora_pl.data.tokens import Tokens

RANKS = (1, 2, 4, 8)


def packed_step(encoder: str, base: str, count: int, batch_size: int, device: Device = CPU) -> Step:
    """`count` trials of the ranks 1, 2, 4, 8, 1, ..., each on `batch_size` sentences of its own; one as in `fit`."""
    dtype, quantized = ("bfloat16", True) if base == "int8" else (base, False)
    if count == 1:
        alone = lora_pl_step(encoder, dtype, quantized=quantized, device=device)
        return lambda tokens, indices: alone(tokens, indices[:batch_size])
    trials = [Trial("LoRA", seed, options={"model.lora.r": RANKS[seed % 4]}) for seed in range(count)]
    model = JointTrials(LoRAClassifier(encoder=encoder, base_dtype=base), trials).to(device.name).train()
    optimizer = torch.optim.AdamW(model.parameter_groups(), fused=True)

    def step(tokens: Tokens, indices: Sequence[int]) -> Tensor:
        parts = [indices[start : start + batch_size] for start in range(0, count * batch_size, batch_size)]
        batches = [make_batch(tokens, part, "packed", model.base.tokenizer.pad_token_id) for part in parts]
        loss = model.training_step([batch.to(device.name) for batch in batches], 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def measure(
    folder: Path,
    bases: Sequence[str],
    counts: Sequence[int],
    batch_size: int,
    rounds: int,
    device: Device | None = None,
) -> list[str]:
    """The rows of one encoder, beside a step of one trial with the first base.

    Without a device each peak is measured in a process of its own.
    """
    encoder = random_encoder(folder)
    tokens = training_tokens(encoder)
    draw = np.random.default_rng(0)
    most = batch_size * max(counts)
    batches = [draw.choice(len(tokens), most, replace=False).tolist() for _ in range(rounds + 2)]
    steps, peaks = {}, {}
    kinds = {f"{base} | {count}": (base, count) for base, count in itertools.product(bases, counts)}
    for name, (base, count) in kinds.items():
        make = partial(packed_step, encoder, base, count, batch_size, device or CPU)
        if device:
            step, peaks[name] = step_and_peak(make, tokens, batches[:3], device)
        else:
            step, peaks[name] = make(), peak_memory(make, tokens, batches[:3])
        steps[name] = partial(step, tokens)
    seconds = interleaved(steps, batches, 2, device or CPU)
    alone, rows = seconds[f"{bases[0]} | 1"], []
    for name, value in seconds.items():
        _, count = kinds[name]
        rows.append(
            f"| {folder.name} | {name} | {count * batch_size / value:.1f} | {value / alone:.2f} "
            f"| {count * alone / value:.2f} | {peaks[name]:,.0f} |"
        )
    return rows


HEADER = """\
| encoder | base | K | sentences/s, all trials | a step / the first row's | speed-up over one after another | peak MiB |
| --- | --- | ---: | ---: | ---: | ---: | ---: |"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", nargs="+", default=["roberta-base", "roberta-minilm"])
    parser.add_argument("--bases", nargs="+", default=["bfloat16"], help="float32, bfloat16, int8; the first is 1.00")
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    parts = (measure(shape(name), args.bases, args.counts, args.batch_size, args.rounds) for name in args.encoders)
    print_table(HEADER, parts, args.output)


if __name__ == "__main__":
    main()
