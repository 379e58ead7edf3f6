"""An encoder and its tokenizer, by name. Transformers is imported on first use, not with this module."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from lora_pl.encoder.source import is_folder_name, local_path
from lora_pl.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# these embed positions padding_idx + 1, padding_idx + 2, ...: the first rows of the table are never used
POSITIONS_AFTER_PADDING = frozenset({"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "xmod", "data2vec-text"})

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")


def load_config(name: str) -> PretrainedConfig:
    """The encoder's configuration."""
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig.from_pretrained, name)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The encoder's tokenizer."""
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer.from_pretrained, name)


def load_encoder(name: str, with_pooler: bool = False, dropout: float | None = None) -> PreTrainedModel:
    """The pretrained encoder in fp32 and in train mode, without a pooler unless it is asked for.

    Args:
        name: A hub name, a folder, or package://NAME/PATH.
        with_pooler: Whether to load the pooler too, where the architecture has one.
        dropout: On hidden states and on attention; by default what the encoder's configuration says.

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
        raise UserError(f"encoder: {name} holds no weights for {len(missing)} tensors: {', '.join(missing[:3])}, ...")
    if any(key.startswith("pooler.") for key in report["missing_keys"]):
        encoder.pooler = None  # drawn, not pretrained
    # Transformers hands models over in eval mode, which would train without dropout
    return encoder.train()


def holds_pooler(name: str) -> bool:
    """Whether the encoder's weights have a pooler; where not, Transformers would draw one at random."""
    from transformers import AutoModel

    with quiet_transformers():
        _, report = _from_pretrained(AutoModel.from_pretrained, name, dtype=torch.float32, output_loading_info=True)
    return not any(key.startswith("pooler.") for key in report["missing_keys"])


def build_encoder(config: PretrainedConfig, with_pooler: bool = False) -> PreTrainedModel:
    """An encoder of the configuration's shape with random weights, on torch's current default device."""
    from transformers import AutoModel

    return AutoModel.from_config(config, dtype=torch.float32, **_pooler_argument(config, with_pooler))


def max_tokens(config: PretrainedConfig) -> int:
    """The longest sequence, special tokens included, that the encoder has positions for."""
    positions = int(getattr(config, "max_position_embeddings", 512))
    return positions - first_position(config)


def first_position(config: PretrainedConfig) -> int:
    """The position id of a sentence's first token."""
    return int(config.pad_token_id) + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0


def takes_packed_rows(config: PretrainedConfig) -> bool:
    """Whether the architecture attends through Transformers' AttentionInterface, to all tokens of a sentence alike,
    and takes positions from outside."""
    model = _model_class(config)
    local = any(getattr(config, name, None) for name in ("sliding_window", "local_attention", "layer_types"))
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    return bool(model._supports_attention_backend) and takes_positions and not local


def _set_dropout(config: PretrainedConfig, p: float) -> None:
    names = [name for name in DROPOUTS if hasattr(config, name)]
    if not names:
        raise UserError(f"model.dropout: no dropout is known in the architecture {config.model_type}; leave it out")
    for name in names:
        setattr(config, name, p)


def _pooler_argument(config: PretrainedConfig, with_pooler: bool) -> dict[str, bool]:
    accepted = inspect.signature(_model_class(config).__init__).parameters
    return {"add_pooling_layer": with_pooler} if "add_pooling_layer" in accepted else {}


def _model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    from transformers import MODEL_MAPPING

    if type(config) not in MODEL_MAPPING:
        raise UserError(f"encoder: no text encoder is known for the model type {config.model_type!r}")
    model: type[PreTrainedModel] = MODEL_MAPPING[type(config)]
    return model


def _from_pretrained(load: Callable[..., Any], name: str, **kwargs: Any) -> Any:
    path = local_path(name)
    try:
        return load(path, **kwargs)
    except UserError:
        raise
    except Exception as error:  # the hub's and the file formats' errors share no base class
        raise UserError(_why_not(name, path, error)) from error


def _why_not(name: str, path: str, error: Exception) -> str:
    if path == name and not is_folder_name(name):
        return (
            f"encoder: the hub's {name!r} could not be loaded ({_first_line(error)}); without a network take the "
            "embedded encoder and sentences (--config configs/demo.yaml, --data.source sample) or give a folder"
        )
    return f"encoder: {name} could not be loaded: {_first_line(error)}"


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
