"""The README's lines of Python."""

import torch

from tests.docs.pages import blocks


def test_a_checkpoint_answers(checkpoint):
    given = {}
    exec(blocks("README.md", "python")[0].replace("checkpoints/demo/best.ckpt", str(checkpoint)), given)
    (answer,) = given["model"].predict(["This movie was absolutely trash!"])
    assert {*answer} == {"label", "score", "probabilities"}, "as the comment shows"


def test_the_method_in_a_few_lines():
    given = {}
    exec(blocks("README.md", "python")[1], given)
    layer = given["model"][0]
    assert torch.equal(layer.merged_weight, layer.weight), "B starts at zero"
    trained = {name for name, parameter in given["model"].named_parameters() if parameter.requires_grad}
    assert trained == {"0.adapter.lora_A", "0.adapter.lora_B"}
