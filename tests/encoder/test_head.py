import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lora_pl.encoder.head import ArchitectureHead, LinearHead, make_head, needs_pooler
from lora_pl.encoder.loading import load_encoder
from lora_pl.errors import UserError
from tests.encoder.test_loading import KINDS


def test_linear_head_is_the_seeds(tiny_encoder):
    encoder = load_encoder(tiny_encoder())
    head = make_head("linear", encoder, 2)
    assert isinstance(head, LinearHead)
    assert sum(p.numel() for p in head.parameters()) == 2 * 16 + 2
    h = torch.randn(3, 16)
    torch.testing.assert_close(head(h), h @ head.weight.T + head.bias)


def stock_head(kind, model):
    """Transformers' own (dense, out_proj) for the architecture."""
    if kind == "bert":
        return model.bert.pooler.dense, model.classifier
    if kind == "distilbert":
        return model.pre_classifier, model.classifier
    return model.classifier.dense, model.classifier.out_proj


@pytest.mark.parametrize("kind", KINDS)
def test_architecture_head_computes_what_transformers_own_does(kind, tiny_encoder):
    stock = AutoModelForSequenceClassification.from_pretrained(tiny_encoder(kind), num_labels=3).eval()
    encoder = load_encoder(tiny_encoder(kind), with_pooler=needs_pooler("architecture", stock.config)).eval()
    head = make_head("architecture", encoder, 3).eval()
    dense, out_proj = stock_head(kind, stock)
    if kind == "bert":
        assert torch.equal(head.dense.weight, dense.weight), "does not start from the pretrained pooler"
        assert encoder.pooler is None
    head.dense.load_state_dict(dense.state_dict())
    head.out_proj.load_state_dict(out_proj.state_dict())
    ids = torch.tensor([[0, 5, 6, 7, 2]])
    torch.testing.assert_close(head(encoder(ids).last_hidden_state[:, 0]), stock(ids).logits)


def test_architecture_head_has_the_papers_size():
    from transformers import RobertaConfig

    head = ArchitectureHead(RobertaConfig(hidden_size=768), 2)
    assert sum(p.numel() for p in head.parameters()) == 592_130


def test_an_architecture_without_a_known_head_is_an_error():
    from transformers import AlbertConfig

    with pytest.raises(UserError, match="not for albert; take head: linear"):
        ArchitectureHead(AlbertConfig(), 2)
