"""A packed row gives what padded batches give, and no sentence sees another."""

import copy

import pytest
import torch
from torch import nn

from lora_pl.encoder import attention
from lora_pl.encoder.attention import packed_attention
from lora_pl.encoder.features import FirstTokenFeatures
from lora_pl.encoder.loading import build_encoder, load_config, load_encoder, takes_packed_rows
from lora_pl.encoder.packing import Packing
from lora_pl.lora import LoRAConfig, inject_lora, mark_only_lora_as_trainable
from tests.support import TINY_TERMS, assert_equal_to_rounding, rounding, tiny_config

KINDS = ["roberta", "xlm-roberta", "bert", "distilbert", "electra"]
LENGTHS = [[7, 3, 12, 3], [5], [4, 4, 4], [38, 2, 2]]


def made(kind: str, **changes) -> tuple[FirstTokenFeatures, nn.Module]:
    """An encoder with LoRA whose B is not zero, without dropout."""
    torch.manual_seed(0)
    encoder = build_encoder(tiny_config(kind, **changes)).train()
    names = ("q_lin", "v_lin") if kind == "distilbert" else ("query", "value")
    inject_lora(encoder, LoRAConfig(r=2, target_modules=names))
    mark_only_lora_as_trainable(encoder)
    for name, parameter in encoder.named_parameters():
        nn.init.normal_(parameter, std=0.3) if "lora_B" in name else None
    for module in encoder.modules():
        module.p = 0.0 if isinstance(module, nn.Dropout) else getattr(module, "p", None)
    return FirstTokenFeatures(encoder), encoder


def sentences(lengths) -> list[torch.Tensor]:
    return [torch.randint(4, 60, (length,)) for length in lengths]


def packed(features, ids):
    row = torch.cat(ids)[None]
    return features.of_packed(row, row % 2, Packing([len(s) for s in ids]))


def padded(features, ids):
    rows = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=1)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in ids], batch_first=True)
    return features.of_padded(rows, rows % 2 * mask, mask)


def gradients(encoder) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.requires_grad}
    encoder.zero_grad()
    return found


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_features_and_gradients_are_those_of_padded_batches(kind, lengths):
    features, encoder = made(kind)
    ids = sentences(lengths)
    found = {}
    for way in (padded, packed):
        h = way(features, ids)
        (h * torch.linspace(-1, 1, h.numel()).view_as(h)).sum().backward()
        found[way] = h.detach(), gradients(encoder)
    assert_equal_to_rounding(found[packed][0], found[padded][0], TINY_TERMS)
    for name, expected in found[padded][1].items():
        error = (found[packed][1][name] - expected).norm() / expected.norm()
        assert error < rounding(2 * TINY_TERMS, scale=5), name  # summands that cancel


@pytest.mark.parametrize("kind", KINDS)
def test_no_sentence_sees_another(kind):
    features, _ = made(kind)
    first, second, third = sentences([6, 6, 9])
    one = packed(features, [first, second, third])
    other = packed(features, [first, sentences([6])[0], third])
    assert torch.equal(one[[0, 2]], other[[0, 2]])
    assert not torch.equal(one[1], other[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_is_softmax_of_products_in_every_dtype(dtype):
    q, k, v = (torch.randn(1, 3, 10, 8, dtype=dtype) for _ in range(3))
    y, _ = packed_attention(nn.Module(), q, k, v, None, packing=Packing([4, 1, 5]))
    parts = [slice(0, 4), slice(4, 5), slice(5, 10)]
    expected = [
        nn.functional.scaled_dot_product_attention(*(x[:, :, part].float() for x in (q, k, v))) for part in parts
    ]
    terms = 8 + 5 if dtype == torch.float32 else 1  # summed in fp32
    assert_equal_to_rounding(y.transpose(1, 2).float(), torch.cat(expected, 2), terms, dtype)


def test_the_gradient_of_attention_by_finite_differences():
    x = [torch.randn(1, 2, 9, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    packing = Packing([2, 6, 1])
    assert torch.autograd.gradcheck(lambda *x: packed_attention(nn.Module(), *x, None, packing=packing)[0], x)


def test_the_gradient_under_dropout_by_finite_differences():
    x = [torch.randn(1, 2, 9, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    packing = Packing([2, 6, 1])

    def attend(*x):
        torch.manual_seed(5)
        return packed_attention(nn.Module(), *x, None, dropout=0.3, packing=packing)[0]

    assert torch.autograd.gradcheck(attend, x)
    without, _ = packed_attention(nn.Module(), *x, None, packing=packing)
    assert not torch.allclose(attend(*x), without)


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    features, encoder = made(kind)
    ids = sentences([5, 9, 2])
    packed(features, ids).square().sum().backward()
    expected = gradients(encoder)
    encoder.gradient_checkpointing_enable()
    packed(features, ids).square().sum().backward()
    for name, gradient in gradients(encoder).items():
        assert_equal_to_rounding(gradient, expected[name], 2 * TINY_TERMS)


def test_copies_are_apart():
    features, encoder = made("roberta")
    ids = sentences([5, 3])
    expected = packed(features, ids)
    twin = copy.deepcopy(features)
    assert twin.encoder is not encoder
    nn.init.zeros_(encoder.embeddings.word_embeddings.weight)
    assert torch.equal(packed(twin, ids), expected)


def test_512_tokens_beside_one():
    features, _ = made("roberta", max_position_embeddings=514)
    ids = sentences([512, 1])
    assert_equal_to_rounding(packed(features, ids), padded(features, ids), TINY_TERMS + 2 * 512)


def test_which_architectures_take_packed_rows():
    from transformers import DebertaV2Config, ModernBertConfig

    assert all(takes_packed_rows(tiny_config(kind)) for kind in KINDS)
    assert not takes_packed_rows(DebertaV2Config())  # attends in its own way
    assert not takes_packed_rows(ModernBertConfig())  # attends locally


def test_the_kernel_is_for_half_precision_on_a_gpu_without_dropout(monkeypatch):
    class Query:
        device, dtype = torch.device("cuda"), torch.bfloat16

    assert attention._has_kernel(Query, 0.0)
    assert not attention._has_kernel(Query, 0.1)
    Query.dtype = torch.float32
    assert not attention._has_kernel(Query, 0.0)
    assert not attention._has_kernel(torch.zeros(1, dtype=torch.bfloat16), 0.0)


def test_the_kernel_is_given_tokens_first_and_cumulative_lengths(monkeypatch):
    import torch.nn.attention.varlen as varlen

    given = []
    monkeypatch.setattr(attention, "_has_kernel", lambda query, dropout: True)
    monkeypatch.setattr(varlen, "varlen_attn", lambda q, k, v, *rest, **options: given.append((rest, options)) or v)
    v = torch.randn(1, 3, 10, 8)
    y, _ = packed_attention(nn.Module(), v, v, v, None, scaling=0.5, packing=Packing([4, 6]))
    assert torch.equal(y, v.transpose(1, 2))
    (((starts, _, longest, _), options),) = given
    assert starts.tolist() == [0, 4, 10]
    assert (longest, options) == (6, {"scale": 0.5})


@pytest.mark.shared
@pytest.mark.parametrize("name", ["roberta-mini", "roberta-minilm"])
def test_real_sentences_on_pretrained_encoders(name, shared):
    from lora_pl.encoder.loading import load_tokenizer

    folder = str(shared / "models" / name)
    lines = (shared / "glue/SST-2/dev.tsv").read_text().splitlines()[1:65]
    tokenizer = load_tokenizer(folder)
    ids = [torch.tensor(tokenizer(line.split("\t")[0])["input_ids"]) for line in lines]
    encoder = load_encoder(folder).eval()
    assert load_config(folder).model_type == "roberta"
    features = FirstTokenFeatures(encoder)
    with torch.no_grad():
        assert_equal_to_rounding(packed(features, ids), _padded_roberta(features, ids), 6 * 4 * 384)


def _padded_roberta(features, ids):
    rows = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=1)
    return features.of_padded(rows, torch.zeros_like(rows), (rows != 1).long())
