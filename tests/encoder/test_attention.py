"""Attention over a packed row."""

import os

import pytest
import torch
from torch import nn

from lora_pl.encoder import attention
from lora_pl.encoder.attention import packed_attention, register_packed_attention
from lora_pl.encoder.features import FirstTokenFeatures
from lora_pl.encoder.loading import load_config, load_encoder
from lora_pl.encoder.packing import Packing
from tests.encoder.test_architectures import packed, padded
from tests.support import assert_equal_to_rounding, rounding


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_is_softmax_of_products_in_every_dtype(dtype, window):
    q, k, v = (torch.randn(1, 3, 10, 8, dtype=dtype) for _ in range(3))
    y, _ = packed_attention(nn.Module(), q, k, v, None, packing=Packing([4, 1, 5]), sliding_window=window)
    expected = [attend(*(x[:, :, part].float() for x in (q, k, v)), window) for part in (slice(4), [4], slice(5, 10))]
    tolerance = rounding(8, dtype)
    torch.testing.assert_close(y.transpose(1, 2).float(), torch.cat(expected, 2), rtol=tolerance, atol=tolerance)


def attend(q, k, v, window):
    """A token attends to those less than `window` places away."""
    place = torch.arange(q.shape[2])
    near = (place[:, None] - place).abs() < (window or len(place))
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=near)


@pytest.mark.parametrize(("window", "p"), [(None, 0.0), (2, 0.0), (None, 0.3)])
def test_the_gradient_of_attention_by_finite_differences(window, p):
    x = [torch.randn(1, 2, 9, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    options = {"packing": Packing([2, 6, 1]), "sliding_window": window}

    def attention_of(*x):
        torch.manual_seed(5)
        return packed_attention(nn.Module(), *x, None, dropout=p, **options)[0]

    assert torch.autograd.gradcheck(attention_of, x)
    without, _ = packed_attention(nn.Module(), *x, None, **options)
    assert torch.allclose(attention_of(*x), without) == (p == 0)


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
    ((starts, _, longest, _), options) = given[0]
    assert starts.tolist() == [0, 4, 10]
    assert (longest, options) == (6, {"scale": 0.5, "window_size": (-1, -1)})
    packed_attention(nn.Module(), v, v, v, None, packing=Packing([4, 6]), sliding_window=5)
    assert given[1][1]["window_size"] == (4, 4)


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
        assert_equal_to_rounding(packed(features, ids), padded(features, ids), 6 * 4 * 384)


def test_pytorch_keeps_few_descriptions_of_products_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    register_packed_attention()
    assert os.environ["LRU_CACHE_CAPACITY"] == "64"
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "1024")
    register_packed_attention()
    assert os.environ["LRU_CACHE_CAPACITY"] == "1024"
