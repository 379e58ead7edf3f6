import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)

from lora_pl.encoder.architectures import stock_head
from lora_pl.encoder.head import ArchitectureHead, LinearHead, new_head
from lora_pl.encoder.loading import load_config, load_encoder, pretrained_head_layers
from lora_pl.errors import UserError
from tests.encoder.test_architectures import TERMS, WITH_HEAD
from tests.support import rounding


def test_linear_head_is_the_original_repositorys(tiny_encoder):
    encoder = load_encoder(tiny_encoder())
    head = new_head("linear", encoder.config, 2)
    assert isinstance(head, LinearHead)
    assert sum(p.numel() for p in head.parameters()) == 2 * 16 + 2
    h = torch.randn(3, 16)
    torch.testing.assert_close(head(h), h @ head.weight.T + head.bias)


@pytest.mark.parametrize("kind", WITH_HEAD)
def test_architecture_head_computes_what_transformers_own_does(kind, tiny_encoder, tmp_path):
    config = load_config(tiny_encoder(kind))
    config.update({**stock_head(config).settings, "num_labels": 3})
    stock = AutoModelForSequenceClassification.from_config(config).eval()
    stock.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path)).eval()
    head = new_head("architecture", encoder.config, 3, pretrained_head_layers(str(tmp_path))).eval()
    assert getattr(encoder, "pooler", None) is None
    for own, name in stock_head(config).layers.items():
        layer, theirs = head.get_submodule(own), stock.get_submodule(name)
        if own in stock_head(config).pretrained:
            assert torch.equal(layer.weight, theirs.weight), "does not start as the base has it"
        layer.load_state_dict(theirs.state_dict())
    ids = torch.tensor([[0, 5, 6, 7, 2]])
    expected = stock(ids).logits
    torch.testing.assert_close(head(encoder(ids).last_hidden_state[:, 0]), expected, rtol=0, atol=rounding(TERMS))


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_pretrained_layers_of_the_head_are_found_where_they_are(kind, tiny_encoder, tmp_path):
    config = load_config(tiny_encoder(kind))
    whole = {"bert": AutoModelForPreTraining, "modernbert": AutoModelForMaskedLM}[kind].from_config(config)
    whole.save_pretrained(tmp_path / "whole")
    encoder = AutoModel.from_config(config)
    encoder.pooler = None
    encoder.save_pretrained(tmp_path / "bare")
    assert pretrained_head_layers(str(tmp_path / "whole")).keys() == set(stock_head(config).pretrained)
    assert pretrained_head_layers(str(tmp_path / "bare")) == {}
    assert new_head("architecture", config, 2, {}).dense.weight.std() > 0


@pytest.mark.parametrize("kind", WITH_HEAD)
def test_dropout_of_the_head_is_transformers_own(kind, tiny_encoder):
    config = load_config(tiny_encoder(kind))
    names = {"classifier_dropout": 0.3, "seq_classif_dropout": 0.3, "pooler_dropout": 0.4, "hidden_dropout_prob": 0.2}
    config.update(names)
    stock, own = stock_head(config), ArchitectureHead(config, 2)
    with torch.device("meta"):
        theirs = AutoModelForSequenceClassification.from_config(config)
    outside = [m for n, m in theirs.named_modules() if not n.startswith(f"{theirs.base_model_prefix}.")]
    expected = {module.p for module in outside if isinstance(module, torch.nn.Dropout)}
    assert {own.dropout.p, *([own.input_dropout.p] if stock.input_dropout else [])} == expected


def test_architecture_head_has_the_papers_size():
    from transformers import RobertaConfig

    head = ArchitectureHead(RobertaConfig(hidden_size=768), 2)
    assert sum(p.numel() for p in head.parameters()) == 592_130


def test_an_architecture_without_a_known_head_is_an_error():
    from transformers import AlbertConfig

    with pytest.raises(UserError, match="^model.head: "):
        ArchitectureHead(AlbertConfig(), 2)
