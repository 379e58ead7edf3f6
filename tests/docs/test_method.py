"""The page on the method: its code runs, on any module with the layers that it names."""

import torch
from torch import nn

from tests.docs.pages import blocks


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value, self.classifier = (nn.Linear(8, 8) for _ in range(3))


def test_the_code_runs_and_leaves_the_pretrained_model():
    model = Model()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    names: dict = {"model": model}
    (code,) = blocks("docs/method.md", "python")
    exec(code, names)
    assert names["names"] == ["query", "value"]
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
