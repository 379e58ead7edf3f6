"""LoRA fine-tuning of encoders for sentence classification with PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_pl.data.datamodule import SentenceDataModule
    from lora_pl.lora import LoRAConfig
    from lora_pl.model.classifier import LoRAClassifier
    from lora_pl.model.many_adapters import ManyAdapters
    from lora_pl.training.run import Run

__version__ = "0.3.0"
__all__ = ["LoRAClassifier", "LoRAConfig", "ManyAdapters", "Run", "SentenceDataModule"]

_HOMES = {
    "SentenceDataModule": "lora_pl.data.datamodule",
    "LoRAClassifier": "lora_pl.model.classifier",
    "LoRAConfig": "lora_pl.lora",
    "ManyAdapters": "lora_pl.model.many_adapters",
    "Run": "lora_pl.training.run",
}


def __getattr__(name: str) -> Any:
    # imported on first use, so that `import lora_pl` is instant
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
