"""Prediction side by side with peers: `python -m benchmarks.prediction --output FILE`."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.device import CPU, Device
from benchmarks.peers import peft_model, random_encoder
from benchmarks.table import print_table
from benchmarks.timing import interleaved
from benchmarks.training import shape, source
from lora_pl.data.sources import read_split
from lora_pl.data.tasks import get_task
from lora_pl.encoder.loading import load_tokenizer
from lora_pl.lora import lora_layers
from lora_pl.model.classifier import LoRAClassifier

Predict = Callable[[Sequence[str]], object]
OURS = "lora_pl, merged"
PIPELINE_BATCHES = (1, 8, 32, 64)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "16-bit": torch.float16}


def lora_pl(encoder: str, dtype: torch.dtype, merged: bool, method: str = "lora", device: Device = CPU) -> Predict:
    """This package; `method: head` has no adapters at all: the base model's own time."""
    model = LoRAClassifier(encoder=encoder, method=method).to(device.name).eval()
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.adapter.lora_B)
        layer.merge() if merged else None
    model.base.cast(dtype)
    return lambda texts: model.task.predictions(model.logits(texts))


def pipeline(encoder: str, dtype: torch.dtype, batch_size: int, device: Device = CPU) -> Predict:
    """Transformers' pipeline over a list, at one batch size."""
    from transformers import AutoModelForSequenceClassification
    from transformers import pipeline as make

    model = AutoModelForSequenceClassification.from_pretrained(encoder, dtype=dtype)
    tokenizer = load_tokenizer(encoder)
    made = make("text-classification", model=model, tokenizer=tokenizer, device=device.name)
    return partial(made, batch_size=batch_size)


def peft_unmerged(encoder: str, dtype: torch.dtype, batch_size: int, device: Device = CPU) -> Predict:
    """PEFT unmerged, in batches padded to their longest."""
    model, tokenizer = peft_model(encoder, dtype).to(device.name).eval(), load_tokenizer(encoder)

    @torch.inference_mode()
    def predict(texts: Sequence[str]) -> list[torch.Tensor]:
        parts = [list(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        batches = (tokenizer(part, padding=True, return_tensors="pt").to(device.name) for part in parts)
        return [model(**batch).logits.softmax(-1).cpu() for batch in batches]

    return predict


def measure(
    folder: Path,
    precision: str,
    split: str,
    sentences: int,
    rounds: int,
    wanted: Callable[[str], bool],
    device: Device = CPU,
) -> list[str]:
    """The rows of one encoder, precision and split of SST-2: its first sentences, all `wanted` peers in turn."""
    encoder = random_encoder(folder)
    texts = read_split(source(), get_task("sst2"), split).texts[0][:sentences]
    dtype = DTYPES[precision]
    makers: dict[str, Callable[[], Predict]] = {
        OURS: partial(lora_pl, encoder, dtype, merged=True, device=device),
        "lora_pl, unmerged": partial(lora_pl, encoder, dtype, merged=False, device=device),
        "lora_pl, int8 base, unmerged": partial(lora_pl, encoder, torch.int8, merged=False, device=device),
        "lora_pl, the base without adapters": partial(lora_pl, encoder, dtype, False, "head", device),
        "PEFT, unmerged, batch 32": partial(peft_unmerged, encoder, dtype, 32, device),
    }
    for size in PIPELINE_BATCHES:
        makers[f"Transformers' pipeline, batch {size}"] = partial(pipeline, encoder, dtype, size, device)
    peers = {name: make() for name, make in makers.items() if device.can_run(name) and (wanted(name) or name == OURS)}
    seconds = interleaved(peers, [texts] * (rounds + 1), 1, device)
    ours = seconds[OURS]
    return [
        f"| {folder.name} | {precision} | {split} | {name} | {len(texts) / value:.1f} | {value / ours:.2f} |"
        for name, value in seconds.items()
    ]


HEADER = """\
| encoder | precision | sentences | what | sentences/s | speed-up |
| --- | --- | --- | --- | ---: | ---: |"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", nargs="+", default=["roberta-base", "roberta-minilm"])
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--splits", nargs="+", default=["train", "validation"])
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="the peers with this in their name; lora_pl's own in any case")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    cases = itertools.product(args.encoders, args.precisions, args.splits)
    parts = (
        measure(shape(name), precision, split, args.sentences, args.rounds, lambda name: args.only in name)
        for name, precision, split in cases
    )
    print_table(HEADER, parts, args.output)


if __name__ == "__main__":
    main()
