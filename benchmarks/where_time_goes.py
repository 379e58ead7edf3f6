"""A picture of a training step's time by kind of work, padded and packed:
`python -m benchmarks.where_time_goes --output FILE.png`."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.profiler import profile

from benchmarks.peers import PADDED_TO, Step, lora_pl_step, original_step, peft_step, random_encoder
from benchmarks.training import SHARED, training_tokens
from lora_pl.data.tokens import Tokens

KINDS = {
    "matrix products": ("aten::addmm", "aten::mm", "aten::linear"),
    "attention": ("aten::bmm", "aten::baddbmm", "softmax", "scaled_dot_product", "index_select", "GroupedAttention"),
    "dropout": ("bernoulli", "dropout", "_Drop", "bitwise"),
    "GELU and norms": ("gelu", "layer_norm"),
}
PADDING, REST = "matrix products with padding", "rest"
COLOURS = {PADDING: "#d9d9d9", "matrix products": "#1b4965", "attention": "#5fa8d3", "dropout": "#ee9b00"}
COLOURS |= {"GELU and norms": "#9b2226", REST: "#8d99ae"}


def kind_of(operation: str) -> str:
    """The kind of work that a profiled operation belongs to."""
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), REST)


def time_by_kind(step: Step, tokens: Tokens, batches: Sequence[Sequence[int]], waste: float) -> dict[str, float]:
    """Milliseconds per step by kind; `waste` is the share of computed tokens that are padding."""
    step(tokens, batches[0])
    seconds = []
    for indices in batches:
        started = time.perf_counter()
        step(tokens, indices)
        seconds.append(time.perf_counter() - started)
    with profile() as profiled:
        for indices in batches:
            step(tokens, indices)
    shares = dict.fromkeys([PADDING, *KINDS, REST], 0.0)
    for event in profiled.key_averages():
        shares[kind_of(event.key)] += event.self_cpu_time_total
    shares[PADDING] = shares["matrix products"] * waste
    shares["matrix products"] -= shares[PADDING]
    scale = 1e3 * median(seconds) / sum(shares.values())
    return {kind: share * scale for kind, share in shares.items()}


def draw(rows: dict[str, dict[str, float]], path: Path) -> None:
    """Stacked horizontal bars, a row per way of training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.1), layout="constrained")
    left = np.zeros(len(rows))
    for kind, colour in COLOURS.items():
        widths = np.asarray([row[kind] for row in rows.values()])
        axes.barh(list(rows), widths, left=left, color=colour, edgecolor="white", label=kind)
        left += widths
    for y, total in enumerate(left):
        axes.text(total, y, f" {total:,.0f} ms", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, left.max() * 1.12)
    axes.set_xlabel("milliseconds per training step, 32 random sentences of SST-2")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="roberta-base")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    encoder = random_encoder(SHARED / "models" / args.encoder)
    tokens = training_tokens(encoder)
    generator = np.random.default_rng(0)
    batches = [generator.choice(len(tokens), 32, replace=False).tolist() for _ in range(args.rounds)]
    real = sum(tokens.lengths[indices].sum() for indices in batches)
    longest = sum(32 * tokens.lengths[indices].max() for indices in batches)
    rows = {
        "padded to 64 (the original)": (original_step(encoder, "bfloat16"), 1 - real / (32 * PADDED_TO * len(batches))),
        "PEFT, padded to the longest": (peft_step(encoder, "bfloat16", torch.bfloat16), 1 - real / longest),
        "lora_pl, packed": (lora_pl_step(encoder, "bfloat16"), 0.0),
    }
    times = {name: time_by_kind(step, tokens, batches, waste) for name, (step, waste) in rows.items()}
    for name, row in times.items():
        print(name, {kind: round(value) for kind, value in row.items()})
    draw(times, args.output)


if __name__ == "__main__":
    main()
