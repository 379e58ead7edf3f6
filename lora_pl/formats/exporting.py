"""The one way that every export takes: write beside, load again, compare, rename."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Literal

from lora_pl.errors import UserError
from lora_pl.formats.comparison import Comparison, compare
from lora_pl.formats.export import Export, ExportOptions
from lora_pl.formats.model_card import write_model_card, write_record
from lora_pl.formats.sentences import DEFAULT_COUNT, Sentences, sentences_for
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.storage.checkpoint import read_checkpoint
from lora_pl.storage.write_whole import write_folder_whole

Format = Literal["hf", "peft", "onnx", "adapter"]

# on first use, so that one format does not need another's packages
_HOMES = {
    "hf": ("huggingface", "HuggingFaceExport"),
    "peft": ("peft", "PeftExport"),
    "onnx": ("onnx", "OnnxExport"),
    "adapter": ("native", "AdapterExport"),
}


def export_checkpoint(
    ckpt_path: str | Path,
    output: str | Path,
    format: Format = "hf",
    options: ExportOptions = ExportOptions(),  # noqa: B008  frozen
    encoder: str | None = None,
    sentences: Sentences | int = DEFAULT_COUNT,
    overwrite: bool = False,
) -> dict[str, Comparison]:
    """Write a checkpoint's model into the folder `output`, for another program to load.

    The base is loaded in fp32 from its own source, whatever type it was trained in. What is written is loaded again,
    and its logits are compared with those of `predict`, before the folder gets its name.

    Args:
        ckpt_path: best.ckpt or last.ckpt of a run.
        output: A folder that is not there yet, or is empty.
        format: hf (a stock folder of Transformers), peft, onnx, or adapter (lora_pl's own, without the base).
        options: The type of the weights, and how they are merged.
        encoder: The base where it has moved.
        sentences: What to compare on, or how many of the checkpoint's validation split (0: all).
        overwrite: Whether a folder that is there is replaced.

    Returns:
        A comparison per written model, by file or format.

    Raises:
        UserError: the format can't hold the model, `output` is taken, the disk refuses, or the export's logits differ
            by more than rounding explains. Nothing is left behind then.
    """
    output = Path(output).expanduser()
    _require_free(output, overwrite)
    checkpoint = read_checkpoint(ckpt_path)
    moved = {} if encoder is None else {"encoder": encoder}
    model = LoRAClassifier.load_from_checkpoint(ckpt_path, base_dtype="float32", **moved)
    # what is recorded is how it was trained, not how it was loaded here
    model.hparams["base_dtype"] = checkpoint["hyper_parameters"].get("base_dtype", "auto")
    export = _export_class(format)(model, options)
    if isinstance(sentences, int):
        sentences = sentences_for(checkpoint, sentences)
    comparisons: dict[str, Comparison] = {}

    def fill(folder: Path) -> None:
        export.write(folder)
        comparisons.update(_compare(export, folder, sentences))
        write_record(folder, export, comparisons)
        write_model_card(folder, export, checkpoint, _made_by(ckpt_path, format, options), comparisons)

    try:
        write_folder_whole(output, fill)
    except OSError as error:
        raise UserError("output", f"{output} could not be written ({error}); nothing is left behind") from error
    return comparisons


def _compare(export: Export, folder: Path, sentences: Sentences) -> dict[str, Comparison]:
    expected = export.model.logits(sentences.texts)
    got = export.logits(folder, sentences.texts)
    tolerance = export.relative_tolerance
    comparisons = {export.name: compare(export.model, expected, got, sentences, tolerance, export.reader)}
    for name, logits in export.extra_files(folder, sentences.texts).items():
        comparisons[name] = compare(export.model, expected, logits, sentences, float("inf"), export.reader)
    return comparisons


def _export_class(format: str) -> type[Export]:
    module, name = _HOMES[format]
    found: type[Export] = getattr(import_module(f"lora_pl.formats.{module}"), name)
    return found


def _require_free(output: Path, overwrite: bool) -> None:
    if output.is_file() or (output.exists() and not overwrite and any(output.iterdir())):
        raise UserError("output", f"{output} is there already; give a folder that is not, or remove it")
    if not output.absolute().parent.is_dir():
        raise UserError("output", f"{output}: there is no folder {output.parent}")


def _made_by(ckpt_path: str | Path, format: str, options: ExportOptions) -> str:
    flags = f" --dtype {options.dtype} --merge_dtype {options.merge_dtype}" + (" --int8 true" if options.int8 else "")
    return f"```sh\nlora_pl export --ckpt_path {ckpt_path} --format {format}{flags}\n```"
