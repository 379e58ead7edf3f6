"""A training step side by side with peers: `python -m benchmarks.training --output FILE`."""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.device import CPU, Device
from benchmarks.peak import measured_peak, step_products
from benchmarks.peers import Step, full_step, lora_pl_step, original_step, peft_step, random_encoder, step_and_peak
from benchmarks.table import print_table
from benchmarks.timing import interleaved
from lora_pl.data.batches import make_batch
from lora_pl.data.sources import SAMPLE, read_split
from lora_pl.data.tasks import get_task
from lora_pl.data.tokens import Tokens, tokenize_cached
from lora_pl.encoder.loading import load_tokenizer
from lora_pl.model.classifier import LoRAClassifier

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""The developers' material: SST-2 and the shapes of encoders."""
OURS = "lora_pl"
GRAPHS = "lora_pl, CUDA graphs"
STEPS = 10
"""Steps between two looks at a GPU's clock, so that it never waits for the next one's launches."""
DTYPES = {"bf16": "bfloat16", "16-bit": "float16", "fp32": "float32"}
PEERS: dict[str, dict[str, Callable[..., Step]]] = {
    "bf16": {
        OURS: partial(lora_pl_step, dtype="bfloat16"),
        GRAPHS: partial(lora_pl_step, dtype="bfloat16", graphs=True),
        "lora_pl, int8 base": partial(lora_pl_step, dtype="bfloat16", quantized=True),
        "lora_pl, padded": partial(lora_pl_step, dtype="bfloat16", batching="padded"),
        "PEFT, bf16 weights": partial(peft_step, dtype="bfloat16", weights=torch.bfloat16),
        "PEFT, fp32 weights, autocast": partial(peft_step, dtype="bfloat16"),
        "PEFT, its default fp32": partial(peft_step, dtype="float32"),
        "the original recipe": partial(original_step, dtype="bfloat16"),
        "full fine-tuning": partial(full_step, dtype="bfloat16"),
    },
    "16-bit": {
        OURS: partial(lora_pl_step, dtype="float16"),
        GRAPHS: partial(lora_pl_step, dtype="float16", graphs=True),
        "lora_pl, padded": partial(lora_pl_step, dtype="float16", batching="padded"),
        "PEFT, fp32 weights, autocast": partial(peft_step, dtype="float16"),
        "full fine-tuning": partial(full_step, dtype="float16"),
    },
    "fp32": {
        OURS: partial(lora_pl_step, dtype="float32"),
        GRAPHS: partial(lora_pl_step, dtype="float32", graphs=True),
        "lora_pl, int8 base": partial(lora_pl_step, dtype="float32", quantized=True),
        "PEFT": partial(peft_step, dtype="float32"),
        "the original recipe": partial(original_step, dtype="float32"),
    },
}


def shape(name: str) -> Path:
    """The folder of an encoder's configuration: by its name among the shapes, or as it is."""
    there = SHARED / "models" / name
    return there if there.is_dir() else Path(name)


def source(task: str = "sst2") -> str:
    """A GLUE task's folder; without the developers' material the 4,568 sentences inside the package."""
    there = SHARED / "glue" / get_task(task).folder
    return str(there) if there.is_dir() else SAMPLE


def training_tokens(encoder: str, task: str = "sst2", max_length: int = 64) -> Tokens:
    """A task's training sentences, cut at so many tokens."""
    examples, cache = read_split(source(task), get_task(task), "train"), Path(tempfile.gettempdir())
    return tokenize_cached(load_tokenizer(encoder), examples, max_length, cache / "lora_pl_benchmark")


def share_of_peak(
    encoder: str, dtype: str, tokens: Tokens, batches: Sequence[Sequence[int]], seconds: float, device: Device = CPU
) -> float:
    """What part of a lora_pl step is the time that its linear layers' products would take at the measured peak."""
    model = LoRAClassifier(encoder=encoder, base_dtype=dtype).to(device.name)
    packed = [make_batch(tokens, indices, "packed", 0) for indices in batches]
    products = median(step_products(model, batch) for batch in packed)
    peak = measured_peak(model.encoder, getattr(torch, dtype), int(median(batch.tokens for batch in packed)))
    return products / peak / seconds


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    sentences_per_second: float
    ratio: float
    """How many times as long a step takes as lora_pl's."""
    share_of_peak: float | None = None
    peak: float | None = None
    """MiB, where it was asked for."""

    def line(self, *first: object) -> str:
        """As Markdown, after the columns `first`."""
        share = "" if self.share_of_peak is None else f"{self.share_of_peak:.0%}"
        cells = [*first, self.what, f"{self.sentences_per_second:.1f}", f"{self.ratio:.2f}", share]
        cells += [] if self.peak is None else [f"{self.peak:,.0f}"]
        return f"| {' | '.join(map(str, cells))} |"


def measure(
    folder: Path,
    precision: str,
    batch_size: int,
    rounds: int,
    device: Device = CPU,
    wanted: Collection[str] | None = None,
    memory: bool = False,
    task: str = "sst2",
    max_length: int = 64,
) -> list[Row]:
    """The rows of one encoder, precision and batch size; a GPU is timed over several steps at once.

    `wanted`: the peers, by default all; `memory`: with each peer's peak; `task`, `max_length`: the sentences.
    """
    encoder = random_encoder(folder)
    tokens = training_tokens(encoder, task, max_length)
    draw = np.random.default_rng(0)
    together = STEPS if device.is_gpu else 1
    batches = [draw.choice(len(tokens), batch_size, replace=False).tolist() for _ in range((rounds + 2) * together)]
    steps: dict[str, Callable[[Sequence[Sequence[int]]], None]] = {}
    peaks: dict[str, float] = {}
    for name, peer in PEERS[precision].items():
        if (wanted and name not in wanted) or not device.can_run(name):
            continue
        make = partial(peer, encoder, device=device)
        if memory:
            step, peaks[name] = step_and_peak(make, tokens, batches[:3], device)
        else:
            step = make()
        if name == GRAPHS:
            _run(step, tokens, batches)  # captures every shape
        steps[name] = partial(_run, step, tokens)
    blocks = [batches[start : start + together] for start in range(0, len(batches), together)]
    seconds = {name: value / together for name, value in interleaved(steps, blocks, 2, device).items()}
    share = share_of_peak(encoder, DTYPES[precision], tokens, batches, seconds[OURS], device)
    return [
        Row(name, batch_size / value, value / seconds[OURS], share if name == OURS else None, peaks.get(name))
        for name, value in seconds.items()
    ]


def _run(step: Step, tokens: Tokens, batches: Sequence[Sequence[int]]) -> None:
    for indices in batches:
        step(tokens, indices)


HEADER = """\
| encoder | precision | batch | what | sentences/s | speed-up | of peak speed |
| --- | --- | ---: | --- | ---: | ---: | ---: |"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", nargs="+", default=["roberta-base", "roberta-minilm"])
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[8, 32, 128])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", metavar="PEER", help="these peers and lora_pl; by default all")
    parser.add_argument("--task", default="sst2", help="whose training sentences")
    parser.add_argument("--max_length", type=int, default=64, help="tokens at which they are cut")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    options = {"rounds": args.rounds, "task": args.task, "max_length": args.max_length}
    options["wanted"] = args.only and [OURS, *args.only]
    parts = (
        [row.line(name, precision, size) for row in measure(shape(name), precision, size, **options)]
        for name, precision, size in itertools.product(args.encoders, args.precisions, args.batch_sizes)
    )
    print_table(HEADER, parts, args.output)


if __name__ == "__main__":
    main()
