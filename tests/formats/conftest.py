"""Checkpoints of tiny models whose adapters are not zero."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lora_pl import LoRAClassifier
from lora_pl.formats.importing import checkpoint_of
from lora_pl.lora import lora_layers
from lora_pl.storage.checkpoint import WholeFileCheckpointIO

TEXTS = ("the film is good", "the plot is very very dull", "fine", "", "a bright cast but never slow")
# no empty second text: Transformers' pipeline takes that for none
PAIRS = tuple((text, "the cast is bright " + text) for text in TEXTS)

MakeModel = Callable[..., LoRAClassifier]


@pytest.fixture(scope="session")
def make_model(tiny_encoder) -> MakeModel:
    def make(kind: str = "roberta", **settings) -> LoRAClassifier:
        torch.manual_seed(3)
        model = LoRAClassifier(encoder=tiny_encoder(kind), **settings)
        for layer in lora_layers(model).values():
            for tensor in layer.adapter.tensors().values():
                nn.init.normal_(tensor, std=0.3)
        for parameter in model.head.parameters():
            nn.init.normal_(parameter, std=0.5)
        return model.eval()

    return make


def saved(model: LoRAClassifier, folder: Path) -> Path:
    """The model's checkpoint."""
    path = folder / "best.ckpt"
    WholeFileCheckpointIO().save_checkpoint(checkpoint_of(model), path)
    return path


def texts_for(model: LoRAClassifier):
    return PAIRS if model.pairs else TEXTS
