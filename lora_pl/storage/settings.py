"""The settings in a checkpoint: what each of them decides, and whether two models have the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lora_pl.errors import UserError
from lora_pl.storage.flat import flatten
from lora_pl.storage.schema import arguments, defaults, require_json

FROM_DATA = ("task", "label_names", "max_length", "pairs")
"""The model's settings that the data determine."""
FROM_MODEL = ("encoder", "seed")
"""The data's settings that `fit` takes from the model and from `--seed_everything`."""
EQUAL = (
    *("task", "label_names", "pairs", "method", "head", "train_biases", "train_norms"),
    *("lora.r", "lora.lora_alpha", "lora.target_modules", "lora.layers", "lora.exclude", "lora.rank_pattern"),
    *("lora.alpha_pattern", "lora.variant", "lora.scaling"),
)
"""The settings of a model that decide which tensors it has, and what it computes from them."""
SAID = ("max_length",)
"""Those that may differ and that change some answers."""
FREE = (
    *("encoder", "base_dtype", "graphs"),  # compared by fingerprints; how numbers are rounded; how they are computed
    "start_from",  # overwritten by what was trained since
    *("lora.lora_dropout", "lora.init", "lora.eva_rho", "lora.eva_batches", "lora.lr_ratio"),
    *("dropout", "nonfinite_loss", "class_weights", "label_smoothing", "monitor"),
    *("learning_rate", "head_learning_rate"),
    *("weight_decay", "decay_bias", "schedule", "warmup_ratio"),
)
"""Those that matter to training alone, and where and how the base is loaded."""
EVALUATED = (
    *("task", "source", "train_file", "validation_file", "test_file"),
    *("text_column", "text_pair_column", "label_column", "label_columns"),
    *("validation_share", "folds", "fold", "seed"),
    *("label_names", "max_length", "too_long", "batching"),
)
"""The data's settings of a checkpoint that evaluation and prediction use."""
TRAINED = ("train_sentences", "train_draw", "batch_size", "eval_batch_tokens")
"""Those that training uses too; a checkpoint says nothing of worker processes and folders of this machine."""


def read_settings(stored: Mapping[str, Any], model: Callable[..., Any], source: str, kind: str) -> dict[str, Any]:
    """The arguments of `model` that a checkpoint, or the record of an adapter folder, was made with.

    A setting that `stored` lacks has its default.

    Raises:
        UserError: `KIND.version` (a setting that this version lacks) or `KIND.settings` (a wrong value).
    """
    known = arguments(model)
    unknown = [str(key) for key in stored if key not in known.__annotations__]
    if unknown:
        raise UserError(
            f"{kind}.version",
            f"{source}: written by another version of lora_pl, or by a class of your own whose load_from_checkpoint "
            f"reads it: this one has no option {', '.join(unknown)}",
        )
    require_json(stored, known, f"{kind}.settings", f"{source}: model.")
    return {**defaults(model), **stored}


def differing(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Those of `SAID` in which two models differ, as text; both are settings by name.

    Raises:
        UserError: `checkpoint.settings`: they differ in one of `EQUAL`.
    """
    before, now = flatten(stored), flatten(given)
    for key in unequal(stored, given):
        raise UserError(
            "checkpoint.settings",
            f"trained with {key} = {before[key]}, but the model has {key} = {now[key]}; leave the setting out",
        )
    return [f"{key} = {now[key]}, trained with {before[key]}" for key in SAID if before[key] != now[key]]


def unequal(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """The settings of `EQUAL` in which two models differ; those of LoRA count where one of the two has it."""
    before, now = flatten(stored), flatten(given)
    adapts = "lora" in (before["method"], now["method"])
    keys = [key for key in EQUAL if adapts or not key.startswith("lora.")]
    return [key for key in keys if _comparable(key, before[key]) != _comparable(key, now[key])]


def _comparable(key: str, value: Any) -> Any:
    """A pattern's entries in their order, of which the first match counts; names of layers have none."""
    if key in ("lora.target_modules", "lora.exclude"):
        return set(value)
    return list(value.items()) if isinstance(value, Mapping) else value
