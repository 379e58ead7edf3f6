"""A checkpoint's accuracy in every format: `python -m benchmarks.formats --ckpt_path FILE`.

Each format is exported, then scored on the whole validation split by its own program in a fresh process.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from lora_pl.encoder.source import local_path
from lora_pl.errors import UserError
from lora_pl.formats.export import ExportOptions
from lora_pl.formats.exporting import export_checkpoint
from lora_pl.formats.sentences import Sentences, sentences_for
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.storage.checkpoint import read_checkpoint
from tests.formats.test_round_trips import in_a_fresh_process

FORMATS = [("hf", "float32"), ("hf", "bfloat16"), ("hf", "float16"), ("peft", "float32"), ("onnx", "float32")]
HEADER = """\
| format | read by | accuracy | right of all | largest logit change | flipped |
| --- | --- | ---: | ---: | ---: | ---: |"""


def rows(ckpt_path: str, folder: Path) -> list[str]:
    """A table row per format."""
    model = LoRAClassifier.load_from_checkpoint(ckpt_path, base_dtype="float32")
    sentences = sentences_for(read_checkpoint(ckpt_path), 0)
    if not (model.label_names and sentences.labels):
        raise UserError(
            "ckpt_path", f"{ckpt_path}: expected a classification whose validation split is on this machine"
        )
    expected = model.logits(sentences.texts)
    found = [row("predict", "lora_pl", expected, expected, sentences)]
    for format, dtype in FORMATS:
        output = folder / f"{format}-{dtype}"
        options = ExportOptions(dtype, int8=format == "onnx")
        comparisons = export_checkpoint(ckpt_path, output, format, options, sentences=sentences)
        job = {"program": format, "folder": str(output), "base": local_path(model.hparams["encoder"]), "dtype": dtype}
        job |= {"texts": sentences.texts, "labels": model.label_names}
        (logits,) = in_a_fresh_process([job])
        found.append(row(f"{format} {dtype}", comparisons[format].reader, expected, logits, sentences))
        for name, comparison in comparisons.items():
            if name != format:
                accuracy = comparison.exported_metrics["accuracy"]
                found.append(
                    f"| {name} | {comparison.reader} | {100 * accuracy:.2f}% | {accuracy * len(expected):.0f} of "
                    f"{len(expected)} | {comparison.largest_logit_change:.1e} | {comparison.flipped} |"
                )
    return found


def row(name: str, reader: str, expected: torch.Tensor, got: torch.Tensor, sentences: Sentences) -> str:
    """Accuracy and differences of one format."""
    right = int((got.argmax(-1) == torch.tensor(sentences.labels)).sum())
    flipped = int((got.argmax(-1) != expected.argmax(-1)).sum())
    change = (got - expected).abs().max().item()
    return f"| {name} | {reader} | {100 * right / len(got):.2f}% | {right} of {len(got)} | {change:.1e} | {flipped} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt_path", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            print("\n".join([HEADER, *rows(args.ckpt_path, Path(folder))]))
        except UserError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
