"""Fingerprints of a base, which tell it from another of the same name."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lora_pl.encoder.architectures import ARCHITECTURES
from lora_pl.encoder.fused import joined_state
from lora_pl.encoder.source import canonical_name

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WITHOUT_EFFECT = {
    *("_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"),
    *("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"),
    *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "gradient_checkpointing"),
    *("initializer_range", "initializer_factor", "initializer_cutoff_factor", "reference_compile"),
    *("attn_implementation", "_attn_implementation", "experts_implementation", "tie_word_embeddings"),
    *("classifier_pooling", "deterministic_flash_attn", "repad_logits_with_grad", "sparse_prediction"),
    *(name for row in ARCHITECTURES.values() for name in row.dropouts),
    *(name for row in ARCHITECTURES.values() if row.head for name in (*row.head.dropout, *row.head.input_dropout)),
}
"""Settings of a configuration that change no feature: names, unused heads, dropout, initialization."""


def base_fingerprints(name: str, encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The base's name and a fingerprint of each of its parts, by which a checkpoint recognizes it."""
    return {
        "encoder": canonical_name(name),
        "weights": weights_fingerprint(encoder),
        "vocabulary": vocabulary_fingerprint(tokenizer),
        "configuration": configuration_fingerprint(encoder.config),
        "tokenizer": _digest(tokenizer_definition(tokenizer)),
    }


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all parameters as Transformers names them, 16 hexadecimal digits.

    Equal for the same weights on any device and in any process, and whether fused layers are split or not.
    """
    named = sorted(joined_state(model, dict(model.named_parameters())).items())
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        digests = list(pool.map(lambda item: _tensor_digest(*item), named))
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the tokenizer's entries and their ids, 16 hexadecimal digits."""
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:16]


def configuration_fingerprint(config: PretrainedConfig) -> str:
    """SHA-256 over what the configuration changes of its class's defaults, less what has no effect on a feature.

    A setting that a later version adds, with a default, changes nothing.
    """
    kind = type(config)
    usual = kind().to_dict()
    changed = {name: value for name, value in config.to_dict().items() if value != usual.get(name)}
    effective = {name: value for name, value in changed.items() if name not in WITHOUT_EFFECT}
    return _digest({**effective, "model_type": kind.model_type})


def tokenizer_definition(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the ids of a text depend on: the tokenizer's rules, and how it is called.

    Left out are the limits that the last call set, and what is empty or false, as later versions add it.
    """
    backend = tokenizer.backend_tokenizer
    rules = json.loads(backend.to_str())
    if isinstance(rules["model"].get("vocab"), dict):
        del rules["model"]["vocab"]  # a fingerprint of its own
    limits = {"truncation": None, "padding": None}
    called = {name: getattr(tokenizer, name) for name in ("model_input_names", "truncation_side", "pad_token_id")}
    called["splits_special_tokens"] = backend.encode_special_tokens or getattr(tokenizer, "split_special_tokens", False)
    definition: dict[str, Any] = _without_empty({**rules, **limits, **called})
    return definition


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not None and item is not False and item != []}
    if isinstance(value, list):
        return [_without_empty(item) if isinstance(item, dict) else item for item in value]
    return value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _tensor_digest(name: str, tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous()
    header = f"{name} {tuple(flat.shape)} {flat.dtype}".encode()
    return hashlib.sha256(header + b"\0" + flat.numpy().tobytes()).digest()
