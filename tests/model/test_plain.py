import copy

import pytest
import torch
from torch import nn

from lora_pl import LoRAClassifier
from lora_pl.errors import UserError
from tests.formats.conftest import moved, saved

TEXTS = ["the film is good", "the plot is very dull"]


class Scaled(LoRAClassifier):
    """A model with an argument and a layer of its own."""

    def __init__(self, scale, **settings):
        super().__init__(**settings)
        self.save_hyperparameters()
        self.own = nn.Linear(2, 2)

    @property
    def trained_beside(self):
        return [*super().trained_beside, *([self.own] if hasattr(self, "own") else [])]

    def forward(self, batch):
        return self.hparams["scale"] * self.own(super().forward(batch))


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_its_state_is_part_of_that_of_a_module_around_it(variant, tiny_encoder):
    first, second = (
        nn.Sequential(LoRAClassifier(encoder=tiny_encoder(), lora={"variant": variant}), nn.Linear(2, 2)).eval()
        for _ in range(2)
    )
    moved(first[0])
    state = first.state_dict()
    assert state.keys() == {*(f"0.{name}" for name in first[0].state_dict()), "1.weight", "1.bias"}
    second.load_state_dict(state)
    assert torch.equal(second[0].logits(TEXTS), first[0].logits(TEXTS))
    del state["0.head.weight"]
    with pytest.raises(RuntimeError, match=r"1 missing: head\.weight"):
        second.load_state_dict(state)


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_it_answers_in_another_type(convert, tiny_encoder):
    model = moved(LoRAClassifier(encoder=tiny_encoder()))
    found = convert(copy.deepcopy(model)).logits(TEXTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model.logits(TEXTS), rtol=0.05, atol=0.05)


def test_a_subclass_reads_its_own_arguments_and_layers(tiny_encoder, tmp_path):
    model = moved(Scaled(2.0, encoder=tiny_encoder()))
    path = saved(model, tmp_path)
    found = Scaled.load_from_checkpoint(path)
    assert found.hparams["scale"] == 2.0
    assert torch.equal(found.logits(TEXTS), model.logits(TEXTS))
    assert Scaled.load_from_checkpoint(path, scale=3.0).hparams["scale"] == 3.0
    with pytest.raises(UserError, match=r"a class of your own .* no option scale"):
        LoRAClassifier.load_from_checkpoint(path)


def test_it_loads_with_the_arguments_of_lightning(tiny_encoder, tmp_path):
    model = moved(LoRAClassifier(encoder=tiny_encoder()))
    path = saved(model, tmp_path)
    for given in ({"map_location": None, "strict": True}, {"map_location": torch.device("cpu"), "weights_only": None}):
        assert torch.equal(LoRAClassifier.load_from_checkpoint(path, **given).logits(TEXTS), model.logits(TEXTS))


@pytest.mark.parametrize(("given", "message"), [({"strict": False}, "leave it out"), ({"rate": 1}, "no such argument")])
def test_others_are_refused(given, message, tiny_encoder, tmp_path):
    path = saved(LoRAClassifier(encoder=tiny_encoder()), tmp_path)
    with pytest.raises(UserError, match=message):
        LoRAClassifier.load_from_checkpoint(path, **given)
