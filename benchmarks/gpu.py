"""Every figure of a GPU in one run: `python -m benchmarks.gpu --output FILE`.

Each section runs in a process of its own, within its share of the time: one that fails or takes too long costs no other
section's rows, and none of its own that were there. With `--accelerator cpu` the same runs on the CPU, to try it out.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from benchmarks import ablation, prediction, training
from benchmarks.device import CPU, Device
from benchmarks.peers import lora_pl_step, random_encoder
from benchmarks.table import print_table
from benchmarks.training import DTYPES, GRAPHS, OURS, shape, training_tokens
from lora_pl.data.tokens import Tokens

TRAINED = (OURS, "lora_pl, padded", "PEFT, bf16 weights", "PEFT, fp32 weights, autocast", "full fine-tuning")
PREDICTING = (
    prediction.OURS,
    "lora_pl, unmerged",
    "PEFT, unmerged, batch 32",
    "Transformers' pipeline, batch 32",
    "Transformers' pipeline, batch 64",
)
Options = argparse.Namespace
START = "spawn"
"""How the processes start: a fork can't use a GPU that its parent has looked at."""


def training_rows(peers: Collection[str], options: Options, device: Device) -> Iterator[list[str]]:
    """A training step of several peers, lora_pl among them, by precision and batch size."""
    folder = shape(options.encoder)
    for size, precision in itertools.product(options.batch_sizes, options.precisions):
        rows = training.measure(folder, precision, size, options.rounds, device, peers, memory=True)
        yield [row.line(folder.name, precision, size) for row in rows]


def joint_rows(options: Options, device: Device) -> Iterator[list[str]]:
    """A step of joint trials beside a step of one."""
    yield ablation.measure(
        shape(options.encoder), ["bfloat16"], options.counts, options.joint_batch_size, options.rounds, device
    )


def prediction_rows(options: Options, device: Device) -> Iterator[list[str]]:
    """Prediction beside peers, by precision and split."""
    folder, wanted = shape(options.encoder), PREDICTING.__contains__
    for precision, split in itertools.product(options.precisions, ("train", "validation")):
        yield prediction.measure(folder, precision, split, options.sentences, options.rounds, wanted, device)


def loss_rows(options: Options, device: Device) -> Iterator[list[str]]:
    """The losses of a run without dropout, beside those of the same run on the CPU."""
    encoder = random_encoder(shape(options.encoder))
    tokens, draw = training_tokens(encoder), np.random.default_rng(0)
    batches = [draw.choice(len(tokens), 8, replace=False).tolist() for _ in range(options.steps)]
    for name, precision in itertools.product(filter(device.can_run, (OURS, GRAPHS)), ("fp32", "bf16")):
        losses = partial(_losses, encoder, DTYPES[precision], tokens, batches)
        here, there = losses(CPU), losses(device, graphs=name == GRAPHS)
        largest = ((there - here).abs() / here).max().item()
        cells = precision, name, options.steps, f"{here.mean():.4f}", f"{there.mean():.4f}", f"{largest:.1e}"
        yield [f"| {' | '.join(map(str, cells))} |"]


def _losses(
    encoder: str, dtype: str, tokens: Tokens, batches: Sequence[Sequence[int]], device: Device, graphs: bool = False
) -> torch.Tensor:
    torch.manual_seed(0)
    step = lora_pl_step(encoder, dtype, dropout=0.0, graphs=graphs, device=device)
    return torch.stack([step(tokens, indices) for indices in batches]).double().cpu()


@dataclass(frozen=True)
class Section:
    """A table of the report."""

    title: str
    header: str
    rows: Callable[[Options, Device], Iterator[list[str]]]
    share: float
    """Of the whole time."""


STEPS = """\
| encoder | precision | batch | what | sentences/s | speed-up | of peak speed | peak MiB |
| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |"""
SECTIONS = {
    "training": Section("A training step", STEPS, partial(training_rows, TRAINED), 0.35),
    "losses": Section(
        "Losses against the CPU's, without dropout, at batch 8",
        """\
| precision | what | steps | mean loss, CPU | mean loss, device | largest relative difference of a step's |
| --- | --- | ---: | ---: | ---: | ---: |""",
        loss_rows,
        0.15,
    ),
    "graphs": Section("CUDA graphs", STEPS, partial(training_rows, (OURS, GRAPHS)), 0.15),
    "joint": Section("Joint trials", ablation.HEADER, joint_rows, 0.2),
    "prediction": Section("Prediction", prediction.HEADER, prediction_rows, 0.15),
}


def parts(section: Section, options: Options) -> Iterator[list[str]]:
    """The section's lines as they are measured, and last why it ended before all were."""
    seconds = 60 * options.minutes * section.share
    yield ["", f"### {section.title}", ""]
    context = get_context(START)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(section, options, sender))
    process.start()
    sender.close()
    ends = time.monotonic() + seconds
    try:
        while receiver.poll(max(0.0, ends - time.monotonic())):
            yield receiver.recv()
        yield ["", f"Stopped after its {seconds:.0f} s."]
    except EOFError:  # the process has ended
        process.join()
        if process.exitcode:
            yield ["", f"Its process ended with exit code {process.exitcode}."]
    finally:
        process.kill()
        process.join()


def _measure(section: Section, options: Options, sender: Connection) -> None:
    torch.set_num_threads(options.threads)
    device = Device(options.accelerator)
    try:
        sender.send([f"{device}; CPU threads: {options.threads}", "", section.header])
        for lines in section.rows(options, device):
            sender.send(lines)
    except Exception as error:
        sender.send(["", f"Failed: {type(error).__name__}: {str(error).splitlines()[0]}"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=8, help="of all sections together")
    parser.add_argument("--encoder", default="roberta-base", help="a shape's name or a folder")
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "16-bit", "fp32"], default=["bf16", "16-bit"])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[8, 32, 256])
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="of joint trials, 1 among them")
    parser.add_argument("--joint_batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=50, help="whose losses are compared with the CPU's")
    parser.add_argument("--sentences", type=int, default=256, help="to predict")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    if options.accelerator == "cuda" and not torch.cuda.device_count():
        parser.error("--accelerator cuda: there is no GPU; try it out with --accelerator cpu")
    title = f"torch {torch.__version__}, {options.encoder}, {training.source()}"
    print_table(title, (lines for name in options.sections for lines in parts(SECTIONS[name], options)), options.output)


if __name__ == "__main__":
    main()
