"""The way of every export: write under a temporary name, load again, compare, rename."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_pl.errors import UserError
from lora_pl.formats import FORMATS
from lora_pl.formats.comparison import Comparison, compare
from lora_pl.formats.export import Export, ExportOptions
from lora_pl.formats.model_card import RECORD, write_model_card, write_record
from lora_pl.formats.sentences import DEFAULT_COUNT, Sentences, sentences_for
from lora_pl.model.plain import PlainClassifier
from lora_pl.model.stored import read_model
from lora_pl.storage.paths import expanded, public
from lora_pl.storage.write_whole import recover, write_folder_whole

if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[tuple(FORMATS)]  # so that the command line lists them


def export_checkpoint(
    ckpt_path: str | Path,
    output: str | Path,
    format: Format = "hf",
    options: ExportOptions = ExportOptions(),  # noqa: B008  frozen
    encoder: str | Path | None = None,
    sentences: Sentences | int = DEFAULT_COUNT,
    overwrite: bool = False,
) -> dict[str, Comparison]:
    """Write a checkpoint's model into the folder `output`, for another program to load.

    The base is loaded in fp32 from its own source, whatever type it was trained in. The export is loaded again and its
    logits are compared with those of `predict` before the folder gets its name.

    Args:
        ckpt_path: best.ckpt or last.ckpt of a run.
        output: A folder that doesn't exist yet, or is empty.
        format: hf (a stock folder of Transformers), peft, onnx, or adapter (lora_pl's own, without the base).
        options: The type of the weights, and how they are merged.
        encoder: The base, if it has moved.
        sentences: What to compare on, or how many of the checkpoint's validation split (0: all).
        overwrite: Whether to replace an earlier export.

    Returns:
        A comparison per written model, by file or format.

    Raises:
        UserError: export.taken, export.parent, export.disk, export.differs (the logits differ by more than rounding
            explains), or what the format can't hold: see `Export`. Nothing is left behind then.
    """
    output = expanded(output)
    require_free(output, overwrite)
    if not output.absolute().parent.is_dir():
        raise UserError("export.parent", f"{output}: there is no folder {output.parent}; make it first")
    checkpoint = read_model(ckpt_path)
    moved: dict[str, Any] = {} if encoder is None else {"encoder": encoder}
    model = PlainClassifier.load_from_checkpoint(ckpt_path, base_dtype="float32", **moved)
    # recorded is how it was trained, not how it was loaded here
    model.hparams["base_dtype"] = checkpoint["hyper_parameters"]["base_dtype"]
    export = FORMATS[format](model, options)
    if isinstance(sentences, int):
        sentences = sentences_for(checkpoint, sentences)
    comparisons: dict[str, Comparison] = {}

    def fill(folder: Path) -> None:
        write_record(folder, export, checkpoint, {})
        export.write(folder)
        comparisons.update(_compared(export, folder, sentences))
        write_record(folder, export, checkpoint, comparisons)
        write_model_card(folder, export, checkpoint, _made_by(ckpt_path, format, options), comparisons)

    try:
        write_folder_whole(output, fill)
    except OSError as error:
        raise UserError("export.disk", f"{output} could not be written ({error}); nothing is left behind") from error
    return comparisons


def _compared(export: Export, folder: Path, sentences: Sentences) -> dict[str, Comparison]:
    expected, got = export.model.logits(sentences.texts), export.logits(folder, sentences.texts)
    tolerance = export.relative_tolerances[export.options.dtype]
    comparisons = {export.name: compare(export, expected, got, sentences, tolerance)}
    for name, logits in export.extra_files(folder, sentences.texts).items():
        comparisons[name] = compare(export, expected, logits, sentences, float("inf"))
    return comparisons


def require_free(output: Path, overwrite: bool) -> None:
    """Raise `export.taken` if `output` is a file, or holds something other than an export to replace."""
    recover(output)
    if output.exists() and not output.is_dir():
        raise UserError("export.taken", f"{output} is no folder; give another name, or remove it")
    if output.is_dir() and any(output.iterdir()) and not (overwrite and (output / RECORD).is_file()):
        raise UserError("export.taken", f"{output} exists already; give another name, or remove it")


def _made_by(ckpt_path: str | Path, format: str, options: ExportOptions) -> str:
    int8 = " --int8 true" if options.int8 else ""
    types = f"--dtype {options.dtype} --merge_dtype {options.merge_dtype}"
    return f"```sh\nlora_pl export --ckpt_path {public(str(ckpt_path), 2)} --format {format} {types}{int8}\n```"
