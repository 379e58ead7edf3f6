"""What a format of exports is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lora_pl.data.texts import Text
from lora_pl.encoder.dtype import DTYPES
from lora_pl.errors import UserError
from lora_pl.model.plain import PlainClassifier

Dtype = Literal["float32", "bfloat16", "float16"]
MergeDtype = Literal["float32", "float64"]


@dataclass(frozen=True)
class ExportOptions:
    """How the weights are written."""

    dtype: Dtype = "float32"
    """The type of the written weights."""
    merge_dtype: MergeDtype = "float32"
    """The type in which W0 + s B A is summed, before it is rounded once to dtype."""
    int8: bool = False
    """onnx: A second file, model.int8.onnx, with the linear layers in 8 bits (dynamic quantization)."""


class Export(ABC):
    """Writes one model into a folder, and reads it back as its users will.

    A format is a subclass and a row of `FORMATS`. Packages beside lora_pl's own are imported inside its methods.

    Args:
        model: In fp32 on the CPU, unmerged; it is left as it is.
        options: How the weights are written.

    Raises:
        UserError: export.format, export.dtype, export.flags or model.head: what the format can't hold, and the
            alternatives.
    """

    name: ClassVar[str]
    """The key in `FORMATS`, and the extra that installs `needed`."""
    program: ClassVar[str]
    """The package that reads the folder."""
    needed: ClassVar[tuple[str, ...]] = ()
    """The packages without which nothing can be written."""
    is_merged: ClassVar[bool] = True
    """Whether the adapters are merged into the base's weights."""
    has_int8: ClassVar[bool] = False
    """Whether it has the option `int8`."""
    relative_tolerances: ClassVar[Mapping[str, float]] = {"float32": 1e-5}
    """By dtype: the largest change of a logit, relative to the largest logit, that rounding explains."""

    def __init__(self, model: PlainClassifier, options: ExportOptions = ExportOptions()) -> None:
        self.model, self.options = model, options
        self.dtype, self.merge_dtype = DTYPES[options.dtype], getattr(torch, options.merge_dtype)
        self.require_representable()

    def require_representable(self) -> None:
        """Raise a UserError for a model or options that the format can't hold."""
        missing = [name for name in self.needed if not find_spec(name)]
        if missing:
            install = f"pip install 'lora_pl[{self.name}]'"
            raise UserError("export.format", f"{self.name} needs {', '.join(missing)}; install them with {install}")
        dtype, dtypes = self.options.dtype, list(self.relative_tolerances)
        if dtype not in dtypes:
            raise UserError("export.dtype", f"the format {self.name} expects {' or '.join(dtypes)}, got {dtype}")
        if self.options.int8 and not self.has_int8:
            raise UserError("export.flags", f"the format {self.name} has no option int8")

    @property
    def reader(self) -> str:
        """The program that `logits` reads with, and its version."""
        return f"{self.program} {import_module(self.program).__version__}"

    @property
    @abstractmethod
    def usage(self) -> str:
        """Python that uses the export; {folder} stands for its path, and the last line gives the `example`'s answer."""

    @property
    def example(self) -> Text:
        """What `usage` asks about: a sentence, or a pair."""
        return ("A fine film.", "The film is good.") if self.model.pairs else "A fine film."

    @property
    def notes(self) -> tuple[str, ...]:
        """Paragraphs for the card on what a user must know."""
        return ()

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Fill the folder; its record is there already."""

    @abstractmethod
    def logits(self, folder: Path, texts: Sequence[Text]) -> Tensor:
        """(texts, outputs), computed from the folder alone (and from the base, if the folder leaves it out)."""

    def extra_files(self, folder: Path, texts: Sequence[Text]) -> dict[str, Tensor]:
        """The logits of further models in the folder, by file name; they are reported, not held to the tolerance."""
        return {}
