"""The classification model that Transformers has for an encoder's architecture, by its names and shapes alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora_pl.data.texts import Text, as_row
from lora_pl.encoder.architectures import architecture_of, stock_head
from lora_pl.encoder.loading import load_config, load_tokenizer
from lora_pl.errors import UserError
from lora_pl.model.plain import PlainClassifier

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

READ_BATCH = 32
HERE = {"local_files_only": True, "trust_remote_code": False}
"""How Transformers is told to read a folder and nothing else."""


def stock_config(model: PlainClassifier, dtype: torch.dtype) -> PretrainedConfig:
    """The base's configuration with the model's classes and the settings that make its head read the first token."""
    config = load_config(model.hparams["encoder"])
    config.update(stock_head(config).settings)
    names = model.label_names or ["LABEL_0"]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = model.task.problem_type
    config.architectures = [stock_class(config).__name__]
    config.dtype = dtype
    return config


def stock_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """`RobertaForSequenceClassification`, `BertForSequenceClassification`, ..."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as MAPPING

    if type(config) not in MAPPING:
        raise UserError(
            "model.encoder", f"Transformers has no classification model for the architecture {config.model_type}"
        )
    model: type[PreTrainedModel] = MAPPING[type(config)]
    return model


def stock_shapes(config: PretrainedConfig) -> PreTrainedModel:
    """The classification model on the meta device: modules, names and shapes, no weights."""
    with torch.device("meta"):
        return stock_class(config)(config)


def save_tokenizer(model: PlainClassifier, folder: str) -> PreTrainedTokenizerBase:
    """Write and return the base's tokenizer: it cuts where `predict` cuts, and gives what the encoder takes."""
    tokenizer = load_tokenizer(model.hparams["encoder"])
    tokenizer.model_max_length = model.max_length
    if not architecture_of(model.base.config).has_token_types(model.base.config):
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names  # the latter is written
    tokenizer.save_pretrained(folder)
    return tokenizer


@torch.inference_mode()
def read_logits(model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> Tensor:
    """(texts, outputs): what a program that knows nothing of lora_pl computes, in padded batches.

    `model` is called with the tokenizer's tensors by name; it gives logits, or an object that holds them.
    """
    parts = []
    for start in range(0, len(texts), READ_BATCH):
        output = model(**encode(tokenizer, texts[start : start + READ_BATCH]))
        parts.append(getattr(output, "logits", output).float())
    return torch.cat(parts)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> Mapping[str, Tensor]:
    """A padded batch, by the names of the model's inputs."""
    columns = zip(*map(as_row, texts), strict=True)
    return dict(tokenizer(*map(list, columns), padding=True, truncation=True, return_tensors="pt"))


def encode_call(text: Text, tensors: str) -> str:
    """`encode` of one text as Python, by a `tokenizer`, with PyTorch's tensors ("pt") or NumPy's arrays ("np")."""
    columns = ", ".join(json.dumps([column]) for column in as_row(text))
    return f'tokenizer({columns}, padding=True, truncation=True, return_tensors="{tensors}")'


def linear_names(config: PretrainedConfig) -> list[str]:
    """The encoder's linear layers by Transformers' names, without a pooler."""
    named = stock_shapes(config).base_model.named_modules()
    return [name for name, module in named if isinstance(module, nn.Linear) and not name.startswith("pooler.")]
