"""An encoder and its tokenizer, by name. Transformers is imported on first use."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora_pl.encoder.architectures import architecture_of, stock_head
from lora_pl.encoder.fused import split_fused
from lora_pl.encoder.source import is_folder_name, local_path
from lora_pl.errors import UserError, first_line
from lora_pl.storage.archive import read_archive

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

RANGES = {
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), (1, 1_000)),
    **dict.fromkeys(("hidden_size", "intermediate_size"), (1, 100_000)),
    **{"vocab_size": (1, 10_000_000), "max_position_embeddings": (3, 10_000_000), "pad_token_id": (0, 10_000_000)},
    **dict.fromkeys(("initializer_range", "layer_norm_eps", "norm_eps"), (0, 1)),
}
"""Least and most: modules are built before the weights are read, and a file could ask for a billion of them."""
_COUNTED: dict[tuple[Any, ...], int] = {}
"""Parameters by model class, configuration and arguments."""
_LOADING = threading.RLock()
"""Transformers patches modules of its own and of torch while it loads: one thread at a time."""


def load_config(name: str) -> PretrainedConfig:
    """The encoder's configuration, which is data: it chooses no code and no implementation.

    Raises:
        UserError: model.encoder: the name leads nowhere, the model is a decoder or has one, is quantized, or too large.
    """
    from transformers import AutoConfig

    config = _from_pretrained(AutoConfig.from_pretrained, name)
    _require_bidirectional(name, config)
    _require_plain(name, config)
    # it could name a kernel that Transformers would download and run
    config._attn_implementation = config._experts_implementation = None
    return config


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The encoder's tokenizer.

    Raises:
        UserError: model.encoder: it can't be loaded, or is not one of the library `tokenizers`.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer.from_pretrained, name)
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise UserError(
            "model.encoder", f"{name}: expected a tokenizer.json, got {kind}, a tokenizer written in Python"
        )
    return tokenizer


def load_encoder(name: str, dropout: float | None = None) -> PreTrainedModel:
    """The pretrained encoder in fp32 and in train mode, without a pooler.

    Fused projections become a `SplitLinear`, so that each role is a linear layer of its own.

    Args:
        name: A hub name, a folder, or package://NAME/PATH.
        dropout: The probability of every dropout in the encoder; by default its configuration's.

    Raises:
        UserError: model.encoder (the name leads nowhere, the hub can't be reached, the weights can't be read or do not
            cover the encoder) or model.dropout (where this architecture's dropout is set is not known).
    """
    from transformers import AutoModel

    config = load_config(name)
    if dropout is not None:
        _set_dropout(config, dropout)
    encoder, absent = _loaded(AutoModel, name, config, **_without_pooler(config))
    missing = sorted(key for key in absent if not key.startswith("pooler."))
    if missing:  # Transformers fills the gaps at random
        raise UserError(
            "model.encoder", f"{name} holds no weights for {len(missing)} tensors: {', '.join(missing[:3])}, ..."
        )
    if any(key.startswith("pooler.") for key in absent):
        encoder.pooler = None  # drawn, not pretrained
    split_fused(encoder, architecture_of(config).fused)
    # Transformers hands models over in eval mode, which would train without dropout
    return encoder.train()


def pretrained_head_layers(name: str) -> dict[str, nn.Module]:
    """The layers of the stock head that the weights hold (BERT's pooler), by `StockHead.pretrained`; all or none."""
    from transformers import AutoModelForSequenceClassification

    config = load_config(name)
    head = stock_head(config)
    layers = {own: head.layers[own] for own in head.pretrained}
    if not layers:
        return {}
    model, absent = _loaded(AutoModelForSequenceClassification, name, config)  # the rest of its head is not used
    if any(key.startswith(f"{layer}.") for key in absent for layer in layers.values()):
        return {}
    return {own: model.get_submodule(layer) for own, layer in layers.items()}


def build_encoder(config: PretrainedConfig) -> PreTrainedModel:
    """An encoder of the configuration's shape with random weights, without a pooler, on torch's default device."""
    from transformers import AutoModel

    encoder = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False, **_without_pooler(config))
    split_fused(encoder, architecture_of(config).fused)
    return encoder


def max_tokens(config: PretrainedConfig) -> int:
    """The longest sequence, special tokens included, that the encoder has positions for."""
    positions = int(getattr(config, "max_position_embeddings", 512))
    return positions - architecture_of(config).first_position(config)


def _require_bidirectional(name: str, config: PretrainedConfig) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL
    from transformers import MODEL_FOR_MASKED_LM_MAPPING as MASKED

    decodes = any(getattr(config, setting, False) for setting in ("is_decoder", "is_encoder_decoder"))
    if decodes or (type(config) in CAUSAL and type(config) not in MASKED):
        raise UserError(
            "model.encoder",
            f"{name} ({config.model_type}) is a decoder or has one; expected an encoder whose tokens see the whole "
            "sentence, such as roberta-base",
        )


def _require_plain(name: str, config: PretrainedConfig) -> None:
    if getattr(config, "quantization_config", None):
        raise UserError("model.encoder", f"{name} is quantized; expected weights in floating point")
    row = architecture_of(config)
    heads = (*row.head.dropout, *row.head.input_dropout) if row.head else ()
    for setting, (least, most) in {**RANGES, **dict.fromkeys((*row.dropouts, *heads), (0, 1))}.items():
        given = getattr(config, setting, None)
        if given is None and (setting != "pad_token_id" or not row.positions_after_padding):
            continue
        if not isinstance(given, int | float) or not least <= given <= most:  # NaN neither
            raise UserError("model.encoder", f"{name}: expected {setting} from {least} to {most:,}, got {given!r}")
    if max_tokens(config) < 3:  # <s>, one token, </s>
        raise UserError("model.encoder", f"{name} has positions for {max_tokens(config)} tokens; expected at least 3")


def _set_dropout(config: PretrainedConfig, p: float) -> None:
    names = [name for name in architecture_of(config).dropouts if hasattr(config, name)]
    if not names:
        raise UserError("model.dropout", f"no dropout is known in the architecture {config.model_type}; leave it out")
    for name in names:
        setattr(config, name, p)


def _without_pooler(config: PretrainedConfig) -> dict[str, bool]:
    from transformers import MODEL_MAPPING

    if type(config) not in MODEL_MAPPING:
        raise UserError("model.encoder", f"no text encoder is known for the model type {config.model_type!r}")
    accepted = inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in accepted else {}


def _loaded(kind: Any, name: str, config: PretrainedConfig, **arguments: Any) -> tuple[Any, Collection[str]]:
    """A model in fp32, and the keys that the weights lack, which Transformers draws; the generators do not move."""
    _require_plain_pickles(name)
    with _LOADING, torch.random.fork_rng(devices=[]):
        _require_enough_bytes(name, kind, config, arguments)
        arguments |= {"config": config, "dtype": torch.float32, "output_loading_info": True}
        model, report = _from_pretrained(kind.from_pretrained, name, **arguments)
    return model, report["missing_keys"]


def _require_plain_pickles(name: str) -> None:
    """Raise a UserError, `encoder...`, where a folder's PyTorch files hold more than tensors; see `read_archive`."""
    folder = Path(local_path(name))
    if not any(folder.glob("*.safetensors")):
        for path in folder.glob("*.bin"):
            read_archive(path, "encoder")


def _require_enough_bytes(name: str, kind: Any, config: PretrainedConfig, arguments: dict[str, Any]) -> None:
    """A folder's weights must be able to fill the model: Transformers draws what they lack, however large it is."""
    files = [path for pattern in ("*.safetensors", "*.bin") for path in Path(local_path(name)).glob(pattern)]
    if not files:
        return
    with _told(name):
        parameters = _parameters(kind, config, arguments)
    held = sum(path.stat().st_size for path in files)
    if parameters > held:
        raise UserError(
            "model.encoder",
            f"{name}: config.json describes {parameters:,} parameters, but the weights are {held:,} bytes; expected "
            "the config.json that was saved with these weights",
        )


def _parameters(kind: Any, config: PretrainedConfig, arguments: dict[str, Any]) -> int:
    """How many a model has, by building it without memory; kept, as a process loads the same encoders again."""
    key = kind, config.to_json_string(), *arguments.items()
    if key not in _COUNTED:
        with torch.device("meta"):
            model = kind.from_config(config, trust_remote_code=False, **arguments)
        _COUNTED[key] = sum(map(Tensor.numel, model.parameters()))
    return _COUNTED[key]


def _from_pretrained(load: Callable[..., Any], name: str, **kwargs: Any) -> Any:
    with _LOADING, _told(name), quiet_transformers():  # its warnings quote the files
        return load(local_path(name), trust_remote_code=False, **kwargs)


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Errors about an encoder as UserErrors."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the hub's and the file formats' errors share no base class
        of_hub = local_path(name) == name and not is_folder_name(name)
        no_folder = "is no folder here and " * (of_hub and "/" in name)
        said = f"{name} {no_folder}could not be loaded: {first_line(error)}"
        if of_hub:
            said += "; without a network use the embedded encoder and sentences (--config configs/demo.yaml, "
            said += "--data.source sample) or give a folder"
        raise UserError("model.encoder", said) from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar over weights and no report on unused poolers and language heads."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
