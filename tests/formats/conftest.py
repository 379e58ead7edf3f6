"""Checkpoints of tiny models all of whose trained parameters have moved."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lora_pl import LoRAClassifier
from lora_pl.encoder.biases_and_norms import biases_and_norms
from lora_pl.formats.importing import checkpoint_of
from lora_pl.lora import lora_layers
from lora_pl.storage.checkpoint_io import WholeFileCheckpointIO

TEXTS = ("the film is good", "the plot is very very dull", "fine", "", "a bright cast but never slow")
# no empty second text: Transformers' pipeline takes that for none
PAIRS = tuple((text, "the cast is bright " + text) for text in TEXTS)

MakeModel = Callable[..., LoRAClassifier]


@pytest.fixture(scope="session")
def make_model(tiny_encoder) -> MakeModel:
    def make(kind: str = "roberta", **settings) -> LoRAClassifier:
        torch.manual_seed(3)
        return moved(LoRAClassifier(encoder=tiny_encoder(kind), **settings))

    return make


def moved(model: LoRAClassifier) -> LoRAClassifier:
    """Adapters and head at random, trained biases and norms away from the base's, in eval mode."""
    for layer in lora_layers(model).values():
        for tensor in layer.adapter.tensors().values():
            nn.init.normal_(tensor, std=0.3)
    for parameter in model.head.parameters():
        nn.init.normal_(parameter, std=0.5)
    for parameter in biases_and_norms(model.encoder, model.hparams).values():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def saved(model: LoRAClassifier, folder: Path) -> Path:
    """The model's checkpoint."""
    path = folder / "best.ckpt"
    WholeFileCheckpointIO().save_checkpoint(checkpoint_of(model), path)
    return path


def texts_for(model: LoRAClassifier):
    return PAIRS if model.pairs else TEXTS
