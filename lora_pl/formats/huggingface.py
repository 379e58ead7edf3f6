"""A stock folder of Transformers: the adapters merged, no code of lora_pl needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from lora_pl.data.texts import Text, named
from lora_pl.encoder.loading import quiet_transformers
from lora_pl.formats.export import Export
from lora_pl.formats.merging import merged_state
from lora_pl.formats.stock_head import head_notes, require_representable, stock_head_state
from lora_pl.formats.stock_model import HERE, read_logits, save_tokenizer, stock_class, stock_config

WEIGHTS = "model.safetensors"


class HuggingFaceExport(Export):
    """`AutoModelForSequenceClassification` and `pipeline("text-classification")` load the folder.

    Module types, names and parameter counts are those of the architecture's own classification model: nothing is slower
    than the base.
    """

    name: ClassVar[str] = "hf"
    program: ClassVar[str] = "transformers"
    relative_tolerances: ClassVar[Mapping[str, float]] = {"float32": 1e-5, "bfloat16": 5e-2, "float16": 1e-2}

    def require_representable(self) -> None:
        """Refuse a linear head too if the architecture's own head can't be linear."""
        super().require_representable()
        require_representable(self.model.head, self.model.base.config)

    @property
    def usage(self) -> str:
        """By the pipeline."""
        every = ", top_k=None" * (self.model.task.problem_type == "multi_label_classification")
        example = json.dumps(named(self.example) if self.model.pairs else self.example)
        return (
            "from transformers import pipeline\n\n"
            'classify = pipeline("text-classification", model="{folder}", '
            f"truncation=True{every})\n"
            f"classify({example})"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """On a linear head in a stock model."""
        return () if self.options.dtype == "float16" else head_notes(self.model.head)

    def write(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer."""
        from safetensors.torch import save_file

        config = stock_config(self.model, self.dtype)
        prefix = stock_class(config).base_model_prefix
        merged = merged_state(self.model.encoder, self.dtype, self.merge_dtype)
        state = {f"{prefix}.{name}": tensor for name, tensor in merged.items()}
        state |= stock_head_state(self.model.head, config, self.dtype)
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(folder)
        save_tokenizer(self.model, str(folder))

    def logits(self, folder: Path, texts: Sequence[Text]) -> Tensor:
        """By Transformers' own classes, in the dtype of the folder."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        with quiet_transformers():
            model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto", **HERE)
            tokenizer = AutoTokenizer.from_pretrained(folder, **HERE)
        return read_logits(model.eval(), tokenizer, texts)
