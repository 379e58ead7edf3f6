"""The encoder's own parameters that are trained in place, beside the adapters: biases and norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from lora_pl.encoder.fused import split_layers
from lora_pl.errors import UserError
from lora_pl.lora import lora_layers

TrainBiases = Literal["none", "lora", "all"]
"""No bias; those of the adapted layers (PEFT's `lora_only`); every bias, those of norms too (PEFT's `all`)."""


def trains_biases_or_norms(settings: Mapping[str, Any]) -> bool:
    """Whether the settings of a model say that more of the encoder is trained than adapters."""
    return settings["train_biases"] != "none" or bool(settings["train_norms"])


def biases_and_norms(encoder: nn.Module, settings: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """The parameters that a model's settings, `train_biases` and `train_norms`, train in place, by name.

    Args:
        encoder: With its adapters. Works on the meta device.
        settings: The hyper-parameters of a `LoRAClassifier`.
    """
    found = biases(encoder, settings["train_biases"])
    return found | norms(encoder) if settings["train_norms"] else found


def require_biases_and_norms(encoder: nn.Module, settings: Mapping[str, Any]) -> None:
    """Raise a UserError, `model.train_biases` or `model.train_norms`, where the setting would be without effect.

    That is where the encoder has no such parameters, and with `method: head`, which trains nothing of the encoder;
    `method: full` trains them anyway.
    """
    which, method = settings["train_biases"], settings["method"]
    asked = {
        "train_biases": (which != "none", f"biases ({which})", biases(encoder, which)),
        "train_norms": (settings["train_norms"], "norms", norms(encoder)),
    }
    for key, (given, what, found) in asked.items():
        if given and method == "head":
            raise UserError(f"model.{key}", "goes with adapters, and method: head trains the head alone; leave it out")
        if given and method == "lora" and not found:
            raise UserError(f"model.{key}", f"there are no such {what} in the encoder; leave it out")


def biases(encoder: nn.Module, which: TrainBiases) -> dict[str, nn.Parameter]:
    """The biases by name; where a part of a fused projection is adapted, `lora` takes those of all its parts."""
    every = {name: parameter for name, parameter in encoder.named_parameters() if f".{name}".endswith(".bias")}
    if which != "lora":
        return every if which == "all" else {}
    adapted = list(lora_layers(encoder))
    for prefix, parts in split_layers(encoder).items():
        names = [f"{prefix}.{part}" for part in parts]
        adapted += names if any(name in adapted for name in names) else []
    return {name: parameter for name, parameter in every.items() if name.removesuffix(".bias") in adapted}


def norms(encoder: nn.Module) -> dict[str, nn.Parameter]:
    """Weight and bias of every norm by name."""
    return {
        f"{name}.{own}": parameter
        for name, module in encoder.named_modules()
        if is_norm(module)
        for own, parameter in module.named_parameters(recurse=False)
    }


def is_norm(module: nn.Module) -> bool:
    """Whether its class is one that torch or Transformers call `...Norm`: LayerNorm, RMSNorm, EuroBertRMSNorm."""
    return type(module).__name__.endswith("Norm")
