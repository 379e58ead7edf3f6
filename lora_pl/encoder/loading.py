"""An encoder and its tokenizer, by name. Transformers is imported on first use, not with this module."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lora_pl.encoder.architectures import architecture_of, stock_head
from lora_pl.encoder.fused import split_fused
from lora_pl.encoder.source import is_folder_name, local_path
from lora_pl.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_config(name: str) -> PretrainedConfig:
    """The encoder's configuration.

    Raises:
        UserError: the name leads nowhere, or the model is a decoder or has one.
    """
    from transformers import AutoConfig

    config = _from_pretrained(AutoConfig.from_pretrained, name)
    _require_bidirectional(name, config)
    return config


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The encoder's tokenizer."""
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer.from_pretrained, name)


def load_encoder(name: str, with_pooler: bool = False, dropout: float | None = None) -> PreTrainedModel:
    """The pretrained encoder in fp32 and in train mode, without a pooler unless it is asked for.

    Fused projections come as a `SplitLinear`, so that each role is a linear layer of its own.

    Args:
        name: A hub name, a folder, or package://NAME/PATH.
        with_pooler: Whether to load the layers of the stock head that its weights hold, as `encoder.pooler`.
        dropout: In all places of the encoder; by default what its configuration says.

    Raises:
        UserError: the name leads nowhere, the hub can't be reached, or the folder's weights can't be read or do not
            cover the encoder (Transformers would fill the gaps at random).
    """
    from transformers import AutoModel

    config = load_config(name)
    if dropout is not None:
        _set_dropout(config, dropout)
    with quiet_transformers():
        encoder, report = _from_pretrained(
            AutoModel.from_pretrained,
            name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            **_pooler_argument(config, with_pooler),
        )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(
            "model.encoder", f"{name} holds no weights for {len(missing)} tensors: {', '.join(missing[:3])}, ..."
        )
    split_fused(encoder, architecture_of(config).fused)
    if any(key.startswith("pooler.") for key in report["missing_keys"]):
        encoder.pooler = None  # drawn, not pretrained
    if with_pooler and not hasattr(encoder, "pooler"):
        encoder.pooler = _pretrained_layers(name, config)
    # Transformers hands models over in eval mode, which would train without dropout
    return encoder.train()


def holds_pooler(name: str) -> bool:
    """Whether the encoder's weights hold the stock head's pretrained layers; else they would be drawn at random."""
    return _pretrained_layers(name, load_config(name)) is not None


def _pretrained_layers(name: str, config: PretrainedConfig) -> nn.ModuleDict | None:
    """The stock head's pretrained layers by `StockHead`'s names for them, None where the weights hold none."""
    from transformers import AutoModelForSequenceClassification

    head = stock_head(config)
    layers = {own: head.layers[own] for own in head.pretrained}
    load, arguments = AutoModelForSequenceClassification.from_pretrained, {"config": config, "dtype": torch.float32}
    # the rest of the stock head is drawn at random, and not used
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        model, report = _from_pretrained(load, name, output_loading_info=True, **arguments)
    if any(key.startswith(f"{layer}.") for key in report["missing_keys"] for layer in layers.values()):
        return None
    return nn.ModuleDict({own: model.get_submodule(layer) for own, layer in layers.items()})


def build_encoder(config: PretrainedConfig, with_pooler: bool = False) -> PreTrainedModel:
    """An encoder of the configuration's shape with random weights, on torch's current default device."""
    from transformers import AutoModel

    arguments = _pooler_argument(config, with_pooler)
    encoder = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False, **arguments)
    split_fused(encoder, architecture_of(config).fused)
    return encoder


def max_tokens(config: PretrainedConfig) -> int:
    """The longest sequence, special tokens included, that the encoder has positions for."""
    positions = int(getattr(config, "max_position_embeddings", 512))
    return positions - architecture_of(config).first_position(config)


def takes_packed_rows(config: PretrainedConfig) -> bool:
    """Whether sentences may lie in one row without padding."""
    return architecture_of(config).packed


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


def _set_dropout(config: PretrainedConfig, p: float) -> None:
    names = [name for name in architecture_of(config).dropouts if hasattr(config, name)]
    if not names:
        raise UserError("model.dropout", f"no dropout is known in the architecture {config.model_type}; leave it out")
    for name in names:
        setattr(config, name, p)


def _pooler_argument(config: PretrainedConfig, with_pooler: bool) -> dict[str, bool]:
    accepted = inspect.signature(_model_class(config).__init__).parameters
    return {"add_pooling_layer": with_pooler} if "add_pooling_layer" in accepted else {}


def _model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    from transformers import MODEL_MAPPING

    if type(config) not in MODEL_MAPPING:
        raise UserError("model.encoder", f"no text encoder is known for the model type {config.model_type!r}")
    model: type[PreTrainedModel] = MODEL_MAPPING[type(config)]
    return model


def _from_pretrained(load: Callable[..., Any], name: str, **kwargs: Any) -> Any:
    path = local_path(name)
    try:
        return load(path, trust_remote_code=False, **kwargs)
    except UserError:
        raise
    except Exception as error:  # the hub's and the file formats' errors share no base class
        raise UserError("model.encoder", _why_not(name, path, error)) from error


def _why_not(name: str, path: str, error: Exception) -> str:
    if path == name and not is_folder_name(name):
        return (
            f"the hub's {name!r} could not be loaded ({_first_line(error)}); without a network take the "
            "embedded encoder and sentences (--config configs/demo.yaml, --data.source sample) or give a folder"
        )
    return f"{name} could not be loaded: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


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
