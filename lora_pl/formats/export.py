"""What a format of exports is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lora_pl.data.texts import Text
from lora_pl.encoder.dtype import DTYPES
from lora_pl.errors import UserError
from lora_pl.model.classifier import LoRAClassifier

Dtype = Literal["float32", "bfloat16", "float16"]
MergeDtype = Literal["float32", "float64"]


@dataclass(frozen=True)
class ExportOptions:
    """How the weights are written."""

    dtype: Dtype = "float32"
    """The type of the written weights."""
    merge_dtype: MergeDtype = "float32"
    """The type in which W0 + (alpha / r) B A is summed, before it is rounded once to dtype."""
    int8: bool = False
    """For onnx: a second file with weights and products in 8 bits."""


class Export(ABC):
    """Writes one model into a folder as one format, and reads it back as its users will.

    Args:
        model: In fp32 on the CPU, with its adapters apart; it stays as it is.
        options: How the weights are written.
    """

    name: ClassVar[str]
    relative_tolerances: ClassVar[dict[str, float]] = {"float32": 1e-5}
    """By dtype: the largest change of a logit, relative to the largest logit, that rounding explains."""

    def __init__(self, model: LoRAClassifier, options: ExportOptions) -> None:
        self.model, self.options = model, options
        self.dtype, self.merge_dtype = DTYPES[options.dtype], getattr(torch, options.merge_dtype)
        if options.dtype not in self.relative_tolerances:
            raise UserError(
                "dtype",
                f"the format {self.name} is written in {' or '.join(self.relative_tolerances)}, got {options.dtype}",
            )
        if options.int8 and self.name != "onnx":
            raise UserError("int8", f"the format {self.name} has no 8-bit form; take --format onnx")
        self.require_representable()

    @abstractmethod
    def require_representable(self) -> None:
        """Raise a UserError, with the reason and the ways on, for a model that the format can't hold."""

    @property
    def relative_tolerance(self) -> float:
        """Of the options' dtype."""
        return self.relative_tolerances[self.options.dtype]

    @property
    @abstractmethod
    def reader(self) -> str:
        """The program that `logits` reads with, and its version."""

    @property
    @abstractmethod
    def usage(self) -> str:
        """Three lines of Python that use the export; {folder} stands for its path."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Paragraphs for the card on what a user must know."""
        return ()

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Fill the folder."""

    @abstractmethod
    def logits(self, folder: Path, texts: Sequence[Text]) -> Tensor:
        """(texts, outputs), computed from nothing but the folder (and the base, where the format has none)."""

    def extra_files(self, folder: Path, texts: Sequence[Text]) -> dict[str, Tensor]:
        """The logits of further files in the folder, by their names."""
        return {}
